"""Each recipe's accuracy budgets in the store, for hosts that do not have the recipe.

budgets/<recipe>.json

The manifest does not hold them: budgets are not part of the action key, so a recipe whose budget
changed keeps its engines, and their figures must meet today's budget. The farm writes the document
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
from enginefarm.store.reading import read

if TYPE_CHECKING:
    from enginefarm.documents.recipe import Recipe

BUDGETS = "budgets/"


class Budgets(Frozen):
    """Precision -> budget; the engines of a precision without one were verified at their build."""

    of: dict[PrecisionName, Budget] = Field(default_factory=dict[PrecisionName, Budget])

    def over(self, manifest: Manifest) -> tuple[str, ...]:
        """One line for each figure of the engine that is over budget; none when it passes."""
        budget = self.of.get(manifest.precision)
        if budget is None:
            return manifest.verification.over_budget
        return judge(manifest.verification.outputs, budget)

    def unknown(self, manifest: Manifest) -> tuple[str, ...]:
        """Figures that the budget needs and the engine's verification does not have."""
        budget = self.of.get(manifest.precision)
        return absent(manifest.verification.outputs, budget) if budget else ()


def remember(store: EngineStore, recipe: Recipe) -> None:
    """Writes the recipe's budgets to the store, if they have changed."""
    wanted = Budgets(of={name: recipe.budget(name) for name in recipe.precisions})
    if recorded(store, recipe.name) != wanted:
        store.objects.put(_key(recipe.name), wanted.canonical_json())


def recorded(store: EngineStore, recipe: str) -> Budgets:
    """The budgets that were remembered last; no budgets when none ever were.

    Raises: CorruptBlob.
    """
    fix = f"delete it; the next build or nightly of {recipe} writes it again"
    return read(store.objects, _key(recipe), Budgets, fix) or Budgets()


def _key(recipe: str) -> str:
    return f"{BUDGETS}{recipe}.json"
