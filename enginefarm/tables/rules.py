"""Each recipe's rule for "slower", in the store: what judges rows does not have the recipe.

benchmarks/rules/<recipe>.json

Not in the manifest: thresholds are not part of the action key, so a recipe whose thresholds
changed keeps its engines and their manifests. The farm writes the rule whenever it surveys
the recipe (`build-model`, `nightly-rebuild`); gates, reports and upgrades read it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from enginefarm.documents.recipe import Recipe
from enginefarm.documents.thresholds import Regression
from enginefarm.errors import CorruptBlob
from enginefarm.store import budgets
from enginefarm.store.engine_store import READERS, EngineStore
from enginefarm.store.reading import LOG, read

RULES = "benchmarks/rules/"


def remember(
    store: EngineStore, recipe: Recipe, recipes_with_rules: Collection[str] | None = None
) -> None:
    """Makes the recipe's rule and accuracy budgets those of its engines. Writes
    only a change. recipes_with_rules: with_rules(), if it is known."""
    budgets.remember(store, recipe)
    default = recipes_with_rules is not None and recipe.name not in recipes_with_rules
    before = Regression() if default else recorded(store, recipe.name)
    if before != recipe.regression:
        store.objects.put(_key(recipe.name), recipe.regression.canonical_json())


def recorded(store: EngineStore, recipe: str) -> Regression:
    """The rule that was remembered last; the default where none ever was.

    Raises: CorruptBlob.
    """
    fix = f"delete it; the next build or nightly of {recipe} writes it again"
    return read(store.objects, _key(recipe), Regression, fix) or Regression()


def with_rules(store: EngineStore) -> frozenset[str]:
    """The recipes for which a rule was remembered, from one paginated listing."""
    keys = (info.key for info in store.objects.list(RULES))
    return frozenset(key.removeprefix(RULES).removesuffix(".json") for key in keys)


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
