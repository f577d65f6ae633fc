"""Each recipe's rule for "slower", in the store: what judges rows does not have the recipe.

benchmarks/rules/<recipe>.json

Not in the manifest: thresholds are not part of the action key, so a recipe whose thresholds
changed keeps its engines and their manifests. The farm writes the rule whenever it surveys
the recipe (`build-model`, `nightly-rebuild`); gates, reports and upgrades read it.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from enginefarm.documents.recipe import Recipe
from enginefarm.documents.thresholds import Regression
from enginefarm.errors import CorruptBlob
from enginefarm.store import budgets
from enginefarm.store.engine_store import READERS, EngineStore
from enginefarm.store.reading import LOG, read

RULES = "benchmarks/rules/"


def remember(store: EngineStore, recipe: Recipe) -> None:
    """Makes the recipe's rule and accuracy budgets the ones that its engines are judged by. Writes
    only a change."""
    budgets.remember(store, recipe)
    if recorded(store, recipe.name) != recipe.regression:
        store.objects.put(_key(recipe.name), recipe.regression.canonical_json())


def recorded(store: EngineStore, recipe: str) -> Regression:
    """The rule that was remembered last; the default where none ever was.

    Raises: CorruptBlob.
    """
    fix = f"delete it; the next build or nightly of {recipe} writes it again"
    return read(store.objects, _key(recipe), Regression, fix) or Regression()


def recorded_rules(store: EngineStore, recipes: Iterable[str]) -> dict[str, Regression]:
    """recorded() of several recipes, read several at a time. One that another version wrote, or
    that is damaged, is the default, with a note: it hides no other recipe."""
    names = sorted(set(recipes))
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(names, pool.map(partial(_or_default, store), names), strict=True))


def _or_default(store: EngineStore, recipe: str) -> Regression:
    try:
        return recorded(store, recipe)
    except CorruptBlob as error:
        LOG.warning("note: the default rule stands for %s: %s", recipe, error.what)
        return Regression()


def _key(recipe: str) -> str:
    return f"{RULES}{recipe}.json"
