"""A night: every recipe surveyed, and what got slower. Builds nothing itself."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from enginefarm.documents.recipe import Recipe
from enginefarm.documents.thresholds import Regression
from enginefarm.errors import EnginefarmError, RecipeError
from enginefarm.planning import plan
from enginefarm.planning.stages import Site
from enginefarm.planning.survey import survey
from enginefarm.recipes import file as recipe_file
from enginefarm.schema import Frozen
from enginefarm.store import budgets
from enginefarm.tables import rules as regression_rules

THREADS = 8


class RecipeState(Frozen):
    """One recipe before the night's builds: how much of it is there."""

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
    """A cell whose timings tonight are a regression."""

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


def counted(standings: Sequence[RecipeState], ended: Mapping[Path, RunEnd]) -> str:
    """The night in one sentence: a recipe that failed is not counted as built."""
    built = sum(run.completed for run in ended.values())
    unread = sum(bool(row.error) for row in standings)
    parts = (
        (sum(row.cached for row in standings), "engines are already built"),
        (built, "recipes were built tonight"),
        (len(ended) - built, "recipes failed"),
        (unread, "recipes could not be read"),
    )
    told = "; ".join(f"{number} {words}" for number, words in parts if number)
    wanted = sum(row.wanted for row in standings)
    return f"{len(standings)} recipes ask for {wanted} engines: {told or 'nothing was built'}."


def recipes_under(folder: Path) -> tuple[Path, ...]:
    """Every recipe.yaml below a folder, hidden folders left out.

    Raises: RecipeError when there is none.
    """
    found = tuple(
        path
        for path in sorted(folder.rglob(recipe_file.FILE_NAME))
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        raise RecipeError(
            f"nightly: there is no {recipe_file.FILE_NAME} under {folder}",
            fix="name the folder that holds the recipes' folders",
        )
    return found


def standings(
    site: Site,
    files: Sequence[Path],
    offers: Sequence[plan.Offer],
    load: Callable[[Path], Recipe] = recipe_file.load,
) -> tuple[RecipeState, ...]:
    """Each recipe's standing: five requests to the store for each, and one for each engine.

    load: how a recipe is read; one that lies in the store costs a request more.
    The recipe's regression rule is remembered: gates and reports judge by it from here on.

    A recipe that cannot be read or planned stands with its error; the others go on.
    """

    def one(file: Path) -> RecipeState:
        try:
            loaded = load(file)
            found = survey(site, loaded, offers)
            regression_rules.remember(site.store, loaded)
            budgets.remember(site.store, loaded)
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

    with ThreadPoolExecutor(THREADS) as pool:
        return tuple(pool.map(one, files))


def slower_tonight(
    site: Site, recipes: Sequence[RecipeState], night: dt.date
) -> tuple[Slowdown, ...]:
    """Tonight's measured cells against the nights before. One listing when nothing was measured."""
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


def compact_yesterday(site: Site, night: dt.date) -> int:
    """Merges the files of the night before, which nobody writes to any more; returns how many."""
    from enginefarm.tables.tables import BenchmarkTables

    return BenchmarkTables(site.store.objects).compact(night - dt.timedelta(days=1))


def _cell(row: object) -> tuple[str, ...]:
    fields = ("recipe", "gpu", "precision", "runtime", "profile", "batch", "cuda_graph")
    return tuple(str(getattr(row, field) or "") for field in fields)
