"""Surveys every recipe of a folder or of the store, builds what is missing, and reports."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from enginefarm.farm.dispatch import build_recipes, cancel_on_error, online_offers
from enginefarm.farm.night import RunEnd, Slowdown
from enginefarm.farm.parameters import Folder, recipe_at, recipes_in
from tasks.nightly import announce, find_slower, publish_night, survey_recipes


@flow(name="nightly-rebuild", persist_result=False)
def nightly_rebuild(folder: Folder = ".") -> Any:
    """Build what is missing. A recipe whose engines are all built starts no run.

    Args:
        folder: Build every recipe.yaml below this folder: absolute, or from a recipe root of the
            control worker (ENGINEFARM_RECIPE_ROOTS). @store: every recipe in the store.
    """
    with cancel_on_error():
        states = survey_recipes(recipes_in(folder), online_offers(), recipe_at)
        ended = build_recipes({row.file: row.recipe for row in states if row.missing})
        slower = find_slower(states)
        announce(slower)
        publish_night(states, ended, slower)
        broken = [f"{row.file}: {row.error}" for row in states if row.error]
        return _final_state(len(states), broken, ended, slower)


def _final_state(
    recipes: int, broken: list[str], ended: dict[Any, RunEnd], slower: tuple[Slowdown, ...]
) -> State[Any]:
    failed = [f"{file}: {run.name}: {run.why}" for file, run in ended.items() if not run.completed]
    if broken or failed:
        count = len(broken) + len(failed)
        return Failed(message=f"{count} of {recipes} recipes\n" + "\n".join(broken + failed))
    if slower:
        return Completed(
            name="Regressed", message="\n".join(f"{row.recipe} {row.cell}" for row in slower)
        )
    if not ended:
        return Completed(name="Cached", message=f"{recipes} recipes, nothing to build")
    return Completed(message=f"{len(ended)} of {recipes} recipes were built")
