"""How a worker that waits asks for runs: seldom, unless it is told that some wait."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import anyio
import pytest
from prefect.client.schemas.objects import Flow, FlowRun, StateType
from prefect.workers.base import BaseWorker

from enginefarm.errors import FarmError
from enginefarm.farm.worker import farm_worker
from enginefarm.farm.worker.farm_worker import ANNOUNCED_S, FarmWorker, RunConfiguration


class Server:
    """Counts the runs that wait, and hears when it is asked for them."""

    def __init__(self) -> None:
        self.waiting = 0
        self.now = 1000.0
        self.counted: list[dict[str, Any]] = []
        self.asked: list[float] = []
        self.flow = "build-engine"
        self.read: list[UUID] = []

    async def read_flow(self, flow_id: UUID) -> Flow:
        self.read.append(flow_id)
        return Flow(id=flow_id, name=self.flow, labels={})

    async def count_flow_runs(self, **filters: Any) -> int:
        self.counted.append(filters)
        return self.waiting


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()

    async def ask(worker: FarmWorker) -> list[object]:
        made.asked.append(made.now)
        return []

    monkeypatch.setattr(BaseWorker, "get_and_submit_flow_runs", ask)
    monkeypatch.setattr(farm_worker.time, "monotonic", lambda: made.now)
    return made


def worker_of(server: Server, *queues: str) -> FarmWorker:
    worker = FarmWorker("gpu-t4", list(queues) or None, name="t4", limit=1)
    worker._client = server
    worker._limiter = anyio.CapacityLimiter(1)
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


def test_a_worker_without_a_free_place_asks_only_to_be_taken_as_ready(server: Server) -> None:
    worker = worker_of(server)
    server.waiting = 1

    async def take_the_place() -> None:
        worker.limiter.acquire_on_behalf_of_nowait(uuid4())

    asyncio.run(take_the_place())
    asked = polls(worker, server, every_s=1, times=31)
    assert [when - asked[0] for when in asked] == [0, 15, 30]
    assert server.counted == []


def test_a_run_that_has_ended_makes_its_worker_ask_at_once_and_not_count(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(*_: Any, **__: Any) -> None:
        return

    monkeypatch.setattr(FarmWorker, "_run_in", nothing)
    worker = worker_of(server)

    async def end_a_run() -> None:
        await worker.get_and_submit_flow_runs()
        await worker.run(FlowRun(flow_id=uuid4()), RunConfiguration())
        for _ in range(5):
            await asyncio.sleep(0)

    asyncio.run(end_a_run())
    assert len(server.asked) == 2
    assert server.counted == []


def test_a_run_is_started_after_one_question_a_flow(server: Server) -> None:
    """Neither the deployment nor the pool says how a run starts: only the flow's name counts."""
    run = FlowRun(flow_id=uuid4(), name="digits t4/fp16", deployment_id=uuid4())

    async def resolve() -> RunConfiguration:
        return await RunConfiguration.resolve_for_flow_run(
            run, client=server, work_pool=None, worker_name="t4"
        )

    first, second = asyncio.run(resolve()), asyncio.run(resolve())
    for configuration in (first, second):
        assert configuration.env["PREFECT__FLOW_RUN_ID"] == str(run.id)
        assert configuration.env["PREFECT__FLOW_ENTRYPOINT"] == "flows.build_engine.build_engine"
    assert server.read == [run.flow_id]


def test_a_flow_of_others_is_refused(server: Server) -> None:
    server.flow = "steal-keys"
    run = FlowRun(flow_id=uuid4(), name="steal")
    with pytest.raises(FarmError, match="the flow 'steal-keys' is not one of enginefarm's"):
        asyncio.run(
            RunConfiguration.resolve_for_flow_run(
                run, client=server, work_pool=None, worker_name="t4"
            )
        )


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
