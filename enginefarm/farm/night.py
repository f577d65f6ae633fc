"""The survey of a nightly rebuild, and its search for slowdowns. Nothing is built here."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from enginefarm.documents.recipe import Recipe
from enginefarm.documents.thresholds import Regression
from enginefarm.errors import EnginefarmError
from enginefarm.planning import plan
from enginefarm.planning.stages import Site
from enginefarm.planning.survey import survey
from enginefarm.recipes import file as recipe_file
from enginefarm.schema import Frozen
from enginefarm.tables import rules as regression_rules

THREADS = 8


class RecipeState(Frozen):
    """How much of one recipe is already built before the night's builds."""

    file: Path
    recipe: str = ""
    wanted: int = 0
    cached: int = 0
    skipped: int = 0
    regression: Regression = Regression()
    error: str = ""

    @property
    def missing(self) -> int:
        return self.wanted - self.cached


class Slowdown(Frozen):
    """A cell of the benchmark tables that got slower tonight."""

    recipe: str
    cell: str
    ratio: float | None
    because: str


class RunEnd(NamedTuple):
    """How the run of one recipe ended: its state, why it failed, and which run it was."""

    name: str
    why: str
    completed: bool
    run_id: str = ""


def summary(states: Sequence[RecipeState], ended: Mapping[Path, RunEnd]) -> str:
    """The night in one sentence. A recipe that failed does not count as built."""
    built = sum(run.completed for run in ended.values())
    unread = sum(bool(row.error) for row in states)
    parts = (
        (sum(row.cached for row in states), "engines are already built"),
        (built, "recipes were built tonight"),
        (len(ended) - built, "recipes failed"),
        (unread, "recipes could not be read"),
    )
    told = "; ".join(f"{number} {words}" for number, words in parts if number)
    wanted = sum(row.wanted for row in states)
    return f"{len(states)} recipes ask for {wanted} engines: {told or 'nothing was built'}."


def recipe_states(
    site: Site,
    files: Sequence[Path],
    offers: Sequence[plan.Offer],
    load: Callable[[Path], Recipe] = recipe_file.load,
) -> tuple[RecipeState, ...]:
    """The state of each recipe, in the order of the files. The store is listed once for all.

    load: reads a recipe. The recipe's regression
    rule and budgets are written to the store, where gates and reports read them.
    A recipe that cannot be read or planned is returned with its error.
    """

    def one(file: Path) -> RecipeState:
        try:
            loaded = load(file)
            found = survey(site, loaded, offers, listed.get(loaded.name, ()))
            regression_rules.remember(site.store, loaded, with_rules)
        except EnginefarmError as error:
            return RecipeState(file=file, error=f"{type(error).__name__}: {error}")
        return RecipeState(
            file=file,
            recipe=loaded.name,
            wanted=len(found.builds) + sum(skip.refused for skip in found.skipped),
            cached=sum(planned.cached for planned in found.builds),
            skipped=sum(not skip.refused for skip in found.skipped),
            regression=loaded.regression,
        )

    listed = site.store.complete_of_each()
    with_rules = regression_rules.with_rules(site.store)
    with ThreadPoolExecutor(THREADS) as pool:
        return tuple(pool.map(one, files))


def find_slowdowns(
    site: Site, recipes: Sequence[RecipeState], night: dt.date
) -> tuple[Slowdown, ...]:
    """The cells that are slower tonight than in the nights before."""
    from enginefarm.tables.filter import RowFilter
    from enginefarm.tables.regression import judge
    from enginefarm.tables.rows import BenchmarkRow
    from enginefarm.tables.tables import BenchmarkTables

    tables = BenchmarkTables(site.store.objects, tolerant=True)
    rules = {standing.recipe: standing.regression for standing in recipes}
    tonight: defaultdict[tuple[str, ...], list[BenchmarkRow]] = defaultdict(list)
    for row in tables.rows(RowFilter(since=night, until=night)):
        if row.recipe in rules and row.latency_ms_median is not None:
            tonight[_cell(row)].append(row)
    slower: list[Slowdown] = []
    earlier: dict[str, list[BenchmarkRow]] = {}
    for cell, rows in sorted(tonight.items()):
        name = rows[0].recipe
        if name not in earlier:
            earlier[name] = tables.rows(
                RowFilter(equal={"recipe": (name,)}, until=night - dt.timedelta(days=1))
            )
        verdict = judge(rows, earlier[name], rules[name])
        if verdict.state == "slower":
            slower.append(
                Slowdown(
                    recipe=name,
                    cell=" ".join(part for part in cell[1:] if part),
                    ratio=verdict.ratio,
                    because=verdict.because,
                )
            )
    return tuple(slower)


def _cell(row: object) -> tuple[str, ...]:
    fields = ("recipe", "gpu", "precision", "runtime", "profile", "batch", "cuda_graph")
    return tuple(str(getattr(row, field) or "") for field in fields)
