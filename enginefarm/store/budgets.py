"""Each recipe's accuracy budgets, on the store: hosts that pull or promote do not have the recipe.

budgets/<recipe>.json

Not in the manifest: budgets are not part of the action key, so a recipe whose budget changed
keeps its engines, and their figures are judged by the budget of today. The farm writes it
whenever it surveys the recipe; gates and `pull` read it. docs/decisions/0103.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from enginefarm.documents.comparing import absent, judge
from enginefarm.documents.manifest import Manifest
from enginefarm.documents.thresholds import Budget
from enginefarm.names import PrecisionName
from enginefarm.schema import Frozen
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.reading import parsed

if TYPE_CHECKING:
    from enginefarm.documents.recipe import Recipe

BUDGETS = "budgets/"


class Budgets(Frozen):
    """Precision -> budget; a precision that is not there is judged as it was when built."""

    of: dict[PrecisionName, Budget] = Field(default_factory=dict[PrecisionName, Budget])

    def over(self, manifest: Manifest) -> tuple[str, ...]:
        """One line for each of the engine's figures over budget; nothing when it passes."""
        budget = self.of.get(manifest.precision)
        if budget is None:
            return manifest.verification.over_budget
        return judge(manifest.verification.outputs, budget)

    def unknown(self, manifest: Manifest) -> tuple[str, ...]:
        """Figures that the budget asks for and the engine's verification does not have."""
        budget = self.of.get(manifest.precision)
        return absent(manifest.verification.outputs, budget) if budget else ()


def remember(store: EngineStore, recipe: Recipe) -> None:
    """Makes the recipe's budgets those that its engines are judged by. Writes only a change."""
    wanted = Budgets(of={name: recipe.budget(name) for name in recipe.precisions})
    if recorded(store, recipe.name) != wanted:
        store.put_object(_key(recipe.name), wanted.canonical_json())


def recorded(store: EngineStore, recipe: str) -> Budgets:
    """The budgets that were remembered last; none where none ever were.

    Raises: CorruptBlob.
    """
    key = _key(recipe)
    found = store.read_document(key)
    fix = f"delete it; the next build or nightly of {recipe} writes it again"
    return Budgets() if found is None else parsed(key, found[0], Budgets, fix)


def _key(recipe: str) -> str:
    return f"{BUDGETS}{recipe}.json"
