"""A night's steps: survey, regressions, report."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.events import emit_event
from prefect.logging import get_run_logger

from enginefarm.documents.recipe import Recipe
from enginefarm.farm import night as nightly
from enginefarm.farm.night import RecipeState, RunEnd, Slowdown
from enginefarm.farm.policy import STEP
from enginefarm.planning import stages
from enginefarm.planning.outcome import inert
from enginefarm.planning.plan import Offer
from enginefarm.recipes.file import FILE_NAME
from enginefarm.report import nightly as report
from enginefarm.tables.tables import BenchmarkTables


@task(name="survey", **STEP)
def survey_recipes(
    files: Sequence[Path], offers: Sequence[Offer], load: Callable[[Path], Recipe]
) -> tuple[RecipeState, ...]:
    found = nightly.recipe_states(stages.here(), files, offers, load)
    get_run_logger().info(
        "%d recipes, %d engines wanted, %d missing",
        len(found),
        sum(row.wanted for row in found),
        sum(row.missing for row in found),
    )
    return found


@task(name="regressions", **STEP)
def find_slower(states: Sequence[RecipeState]) -> tuple[Slowdown, ...]:
    site, night = stages.here(), dt.datetime.now(dt.UTC).date()
    BenchmarkTables(site.store.objects).compact(night - dt.timedelta(days=1))
    return nightly.find_slowdowns(site, states, night)


def announce(slower: Sequence[Slowdown]) -> None:
    """An event for each, for the automation `nightly regressed`."""
    for row in slower:
        emit_event(
            "enginefarm.nightly.regressed",
            resource={"prefect.resource.id": f"enginefarm.recipe.{row.recipe}"},
            payload=row.model_dump(mode="json"),
        )


@task(name="report", **STEP)
def publish_night(
    states: Sequence[RecipeState], ended: Mapping[Path, RunEnd], slower: Sequence[Slowdown]
) -> None:
    rows = [
        {
            "recipe": row.recipe or _name_of(row.file),
            "engines": row.wanted,
            "cached": row.cached,
            "skipped": row.skipped,
            "tonight": _result_tonight(row, ended.get(row.file)),
        }
        for row in states
    ]
    store = stages.here().store
    page = report.publish(store, report.page(store), dt.datetime.now(dt.UTC).date())
    create_table_artifact(key="nightly", table=rows, description="Recipes of the night")
    lines = [
        nightly.summary(states, ended),
        "",
        f"[Report]({report.link(store, page)}) (the link works for a week; `enginefarm report` "
        f"renders the page again)",
        "",
        *(f"- **{row.recipe}** {row.cell} got slower: {inert(row.because)}" for row in slower),
    ]
    create_markdown_artifact(
        key="nightly-summary", markdown="\n".join(lines), description="The night"
    )


def _result_tonight(row: RecipeState, run: RunEnd | None) -> str:
    """The outcome of a recipe, the reason first; its run is a link in the UI."""
    if run is None:
        return f"Failed: {inert(row.error)}" if row.error else "nothing to build"
    said = inert(f"{run.name}: {run.why}" if run.why else run.name)
    return f"{said} ([run](/runs/flow-run/{run.run_id}))"


def _name_of(file: Path) -> str:
    """A recipe that could not be read: by its folder, or by its name in the store."""
    return file.parent.name if file.name == FILE_NAME else file.name
