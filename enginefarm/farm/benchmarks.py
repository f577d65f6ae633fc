"""Queues a benchmark for each new engine, on the pool of its GPU."""

from __future__ import annotations

from collections.abc import Sequence

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import Scheduled

from enginefarm.documents.recipe import Recipe
from enginefarm.farm.dispatch import started
from enginefarm.farm.server import connection as farm
from enginefarm.farm.server import deployments
from enginefarm.planning.outcome import Outcome


def queue_benchmarks(recipe: Recipe, outcomes: Sequence[Outcome]) -> None:
    """Queues a benchmark for each engine that has not run on its GPU yet.

    Each spec has one such run; a run that failed or was cancelled is rescheduled.
    """
    pending = [row for row in outcomes if row.on_device == "pending"]
    with get_client(sync_client=True) as client:
        deployed = {
            pool: deployments.ensure_applied(client, "benchmark-engine", pool)
            for pool in sorted({farm.pool_of(row.gpu) for row in pending})
        }
        for row in pending:
            left = started(
                client.create_flow_run_from_deployment,
                deployed[farm.pool_of(row.gpu)],
                parameters={
                    "spec_digest": row.spec_digest,
                    "budget": recipe.budget(row.precision).model_dump(mode="json"),
                    "class_scores": list(recipe.verification.class_scores),
                },
                name=f"{row.recipe} {row.label}",
                idempotency_key=f"benchmark:{row.spec_digest}",
            )
            _restart_benchmark(client, left)


def _restart_benchmark(client: SyncPrefectClient, left: FlowRun) -> None:
    state = left.state
    if state is not None and state.is_final() and not state.is_completed():
        client.set_flow_run_state(left.id, Scheduled(), force=True)
