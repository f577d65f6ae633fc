"""How a worker that waits asks for runs: seldom, unless it is told that some wait."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prefect.client.schemas.objects import StateType
from prefect.workers.process import ProcessWorker

from enginefarm.farm.worker import farm_worker
from enginefarm.farm.worker.farm_worker import ANNOUNCED_S, FarmWorker


class Server:
    """Counts the runs that wait, and hears when it is asked for them."""

    def __init__(self) -> None:
        self.waiting = 0
        self.now = 1000.0
        self.counted: list[dict[str, Any]] = []
        self.asked: list[float] = []

    async def count_flow_runs(self, **filters: Any) -> int:
        self.counted.append(filters)
        return self.waiting


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()

    async def ask(worker: ProcessWorker) -> list[object]:
        made.asked.append(made.now)
        return []

    monkeypatch.setattr(ProcessWorker, "get_and_submit_flow_runs", ask)
    monkeypatch.setattr(farm_worker.time, "monotonic", lambda: made.now)
    return made


def worker_of(server: Server, *queues: str) -> FarmWorker:
    worker = FarmWorker("gpu-t4", list(queues) or None, name="t4", limit=1)
    worker._client = server
    return worker


def polls(worker: FarmWorker, server: Server, *, every_s: float, times: int) -> list[float]:
    """When it asked for runs."""
    server.asked.clear()

    async def poll() -> None:
        for _ in range(times):
            await worker.get_and_submit_flow_runs()
            server.now += every_s

    asyncio.run(poll())
    return server.asked


def test_a_worker_that_waits_asks_often_enough_to_be_taken_as_ready(server: Server) -> None:
    asked = polls(worker_of(server), server, every_s=1, times=61)
    assert [when - asked[0] for when in asked] == [0, 15, 30, 45, 60]
    # The server's own patience with a queue, a minute by default.
    assert ANNOUNCED_S <= 60 / 2


def test_runs_that_wait_are_asked_for_at_once(server: Server) -> None:
    worker = worker_of(server)
    polls(worker, server, every_s=1, times=3)
    server.waiting = 1
    assert len(polls(worker, server, every_s=1, times=3)) == 3


def test_a_worker_that_only_counts_is_well(server: Server) -> None:
    worker = worker_of(server)
    polls(worker, server, every_s=1, times=1)
    worker._last_polled_time = datetime.now(UTC) - timedelta(hours=1)
    assert not worker.is_worker_still_polling(1)
    polls(worker, server, every_s=1, times=1)
    assert server.asked == []
    assert worker.is_worker_still_polling(1)


def test_only_what_the_worker_may_take_is_counted(server: Server) -> None:
    """A benchmark that waits for a worker with the GPU does not keep a stand-in asking."""
    polls(worker_of(server, "default"), server, every_s=1, times=2)
    (filters,) = server.counted
    assert filters["work_pool_filter"].name.any_ == ["gpu-t4"]
    assert filters["work_queue_filter"].name.any_ == ["default"]
    runs = filters["flow_run_filter"]
    assert runs.state.type.any_ == [StateType.SCHEDULED]
    ahead = runs.next_scheduled_start_time.before_ - datetime.now(UTC)
    assert timedelta(0) < ahead <= timedelta(seconds=10)
    polls(worker_of(server), server, every_s=1, times=2)
    assert server.counted[-1]["work_queue_filter"] is None


def test_a_worker_that_drains_asks_nothing(server: Server) -> None:
    worker = worker_of(server)
    worker.draining.set()
    assert polls(worker, server, every_s=1, times=3) == []
    assert server.counted == []
