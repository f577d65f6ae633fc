"""Engine by engine: cached, rejected, or built by its own flow; and the tables at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from enginefarm.errors import EnginefarmError
from enginefarm.farm import outcome_rows
from enginefarm.farm.policy import STEP
from enginefarm.farm.worker import metrics
from enginefarm.planning import stages
from enginefarm.planning.outcome import HEADER, Outcome, cells, markdown, of_manifest


@task(name="cached", task_run_name="cached {recipe}", **STEP)
def cached_outcomes(recipe: str, spec_digests: Sequence[str]) -> State[list[Outcome]]:
    """The outcomes of engines that are already built, in one task for all of them."""
    store = stages.here().store
    found = [manifest for digest in spec_digests if (manifest := store.manifest(digest))]
    outcomes = [of_manifest(recipe, manifest, "cached") for manifest in found]
    metrics.cached(recipe, len(outcomes))
    return Completed(name="Cached", message=f"{len(outcomes)} of {recipe}", data=outcomes)


@task(name="tables", task_run_name="tables {recipe}", **STEP)
def publish_tables(recipe: str, outcomes: Sequence[Outcome]) -> None:
    """Rows in the store's tables, artifacts in the UI."""
    outcome_rows.record(stages.here().store, outcomes)
    key = f"engines-{recipe.replace('.', '-').replace('_', '-')}"
    rows: list[dict[str, Any]] = [
        dict(zip(HEADER, cells(outcome), strict=True)) for outcome in outcomes
    ]
    create_table_artifact(key=key, table=rows, description=f"Engines of {recipe}")
    create_markdown_artifact(
        key=f"{key}-summary", markdown=markdown(outcomes), description=f"Engines of {recipe}"
    )


class EngineMissing(EnginefarmError):
    """One engine is missing; `outcome` says why. It is the data of the Failed state."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(f"{outcome.label} {outcome.status}: {outcome.reason}")
        self.outcome = outcome


def engine_state(outcome: Outcome) -> State[Outcome]:
    """The named state of one engine: Built, Cached, `Rejected: accuracy`, `Failed: …`."""
    if outcome.fine:
        return Completed(name=outcome.status.capitalize(), data=outcome, message=outcome.label)
    kind = "accuracy" if outcome.status == "rejected" else outcome.reason.partition(":")[0]
    return Failed(
        name=f"{outcome.status.capitalize()}: {kind}",
        message=f"{outcome.label}: {outcome.reason}",
        data=EngineMissing(outcome),
    )
