"""A worker's Prometheus metrics, its health check, and the length of the queues."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

from prefect.client.orchestration import get_client
from prefect.settings import get_current_settings

from enginefarm.farm.server import connection as farm
from enginefarm.farm.worker import metrics
from enginefarm.farm.worker.card import CONTROL_POOL, Card
from enginefarm.farm.worker.farm_worker import FarmWorker
from enginefarm.planning.plan import CROSS_POOL
from enginefarm.settings import current

STATES = {"scheduled": "SCHEDULED", "pending": "PENDING", "running": "RUNNING"}


@contextmanager
def metrics_served(worker: FarmWorker, card: Card) -> Generator[None]:
    """Serves metrics and health while the block runs, if ENGINEFARM_METRICS_PORT is set.

    Only the control worker reports the queues, so each farm reports them once, also for pools
    whose workers are scaled to zero.
    """
    port = os.environ.get("ENGINEFARM_METRICS_PORT")
    if not port:
        yield
        return
    seconds = get_current_settings().worker.query_seconds
    served = metrics.serve(
        current().home / "metrics" / card.name,
        worker=card.name,
        gpu=card.gpu or "",
        host=os.environ.get("ENGINEFARM_METRICS_HOST", "127.0.0.1"),
        port=int(port),
        queue=queue_depth if card.role == "control" else None,
        alive=lambda: worker.is_worker_still_polling(seconds),
    )
    try:
        yield
    finally:
        served.close()


def queue_depth() -> Mapping[tuple[str, str], int]:
    """Runs of each pool that are due, pending or running; `open` is all three."""
    found: dict[tuple[str, str], int] = {}
    with get_client(sync_client=True) as client:
        for pool in (CONTROL_POOL, CROSS_POOL, *farm.gpu_pools(client)):
            for state, name in STATES.items():
                runs: dict[str, object] = {"state": {"type": {"any_": [name]}}}
                if state == "scheduled":  # a schedule's later runs are no queue
                    runs["expected_start_time"] = {"before_": datetime.now(UTC).isoformat()}
                body = {"flow_runs": runs, "work_pools": {"name": {"any_": [pool]}}}
                answer = client.request("POST", "/flow_runs/count", json=body)
                found[pool, state] = int(answer.json())
            found[pool, "open"] = sum(found[pool, state] for state in STATES)
    return found
