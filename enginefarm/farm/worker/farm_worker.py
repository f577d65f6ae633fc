"""The farm's type of Prefect worker: it starts nothing but our runs, each as a process.

When a run ends, the worker asks the queue for another immediately, not at the next poll. While it
waits, it asks only for the number of waiting runs (decision 0231).

SIGTERM lets a worker's runs end, SIGINT does not. A scheduler's stop (Compose, Kubernetes,
systemd) is SIGTERM and then a grace period; a build that is nearly done need not be lost to it.
"""

from __future__ import annotations

import asyncio
import signal
import tempfile
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self, cast

import anyio
import httpx
from prefect import Flow
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterNextScheduledStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
    WorkQueueFilter,
    WorkQueueFilterName,
)
from prefect.client.schemas.objects import StateType
from prefect.exceptions import PrefectHTTPStatusError
from prefect.runner._flow_run_executor import FlowRunExecutionResult, FlowRunExecutorContext
from prefect.workers.base import (
    BaseJobConfiguration,
    BaseVariables,
    BaseWorker,
    BaseWorkerResult,
)

from enginefarm.errors import FarmError
from enginefarm.farm.server.connection import POOL_TYPE
from enginefarm.farm.worker.run_process import FLOWS, RunStarter

if TYPE_CHECKING:
    from uuid import UUID

    from anyio.abc import TaskStatus
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import Flow as APIFlow
    from prefect.client.schemas.objects import FlowRun
    from prefect.runner._process_manager import ProcessHandle

ANNOUNCED_S = 15.0
"""How often a worker asks for runs although none waits. The server takes queues and deployments
that nobody has asked for in a minute as not ready."""


async def _without_hooks(flow_run: FlowRun) -> Flow[..., Any]:
    """What Prefect reads a run's hooks from, in the worker's process. Our flows have none, and
    those that a deployment names are not loaded."""
    return Flow(lambda: None, name=flow_run.name)


class RunConfiguration(BaseJobConfiguration):
    """How a run is started: always the same way and with our code, whatever the pool's template and
    the run's deployment say. Its entry point makes Prefect take no code from the deployment."""

    @classmethod
    async def resolve_for_flow_run(
        cls, flow_run: FlowRun, *, client: PrefectClient, **about: Any
    ) -> Self:
        # Prefect reads the deployment too, for variables that no deployment of ours has.
        flow = _FLOWS.get(flow_run.flow_id) or await client.read_flow(flow_run.flow_id)
        _FLOWS[flow_run.flow_id] = flow
        function = flow.name.replace("-", "_")
        if f"flows.{function}" not in FLOWS:
            raise FarmError(f"worker: the flow {flow.name!r} is not one of enginefarm's")
        entrypoint = f"flows.{function}.{function}"
        resolved = cls(
            env={
                "PREFECT__FLOW_ENTRYPOINT": entrypoint,
                "PREFECT__ENABLE_CANCELLATION_AND_CRASHED_HOOKS": "false",  # the worker's part
            }
        )
        resolved.prepare_for_flow_run(flow_run, flow=flow, **about)
        return resolved


_FLOWS: dict[UUID, APIFlow] = {}
"""Flows that the server has named. Their names never change."""


class RunExit(BaseWorkerResult):
    """A run's process id, and its exit status."""


class FarmWorker(BaseWorker[RunConfiguration, BaseVariables, RunExit]):
    """Takes runs until it is told to drain, and asks for the next when one has ended."""

    type = POOL_TYPE
    job_configuration = RunConfiguration

    def __init__(self, pool: str, queues: list[str] | None, *, name: str, limit: int) -> None:
        super().__init__(pool, queues, name=name, limit=limit, create_pool_if_not_found=False)
        self.draining = asyncio.Event()
        self._announced = -ANNOUNCED_S
        self._asking: set[asyncio.Task[None]] = set()

    @property
    def idle(self) -> bool:
        """Whether it has no run; also while it still starts."""
        return not self.is_setup or self.limiter.borrowed_tokens == 0

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        if self.draining.is_set() or not await self._to_ask():
            return []
        self._announced = time.monotonic()
        try:
            return await super().get_and_submit_flow_runs()
        except RuntimeError as error:
            # A crashed run was sent back before this worker had let go of its last attempt.
            # It comes again with the next poll; Prefect's worker would end here.
            if "already holding" not in str(error):
                raise
            return []

    async def _to_ask(self) -> bool:
        """Whether a run waits that this worker has a place for, or it is time to ask anyway."""
        if time.monotonic() - self._announced >= ANNOUNCED_S:
            return True
        self._last_polled_time = datetime.now(UTC)  # what its health check looks at
        return self.limiter.available_tokens > 0 and await self._waiting() > 0

    async def _waiting(self) -> int:
        """The number of runs that the server would offer, by a question that only counts them."""
        soon = datetime.now(UTC) + timedelta(seconds=self._prefetch_seconds)
        queues = sorted(self._work_queues)
        return await self.client.count_flow_runs(
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
                next_scheduled_start_time=FlowRunFilterNextScheduledStartTime.model_validate(
                    {"before_": soon}
                ),
            ),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[self._work_pool_name])),
            work_queue_filter=WorkQueueFilter(name=WorkQueueFilterName(any_=queues))
            if queues
            else None,
        )

    async def _propose_submitting_state(self, flow_run: FlowRun) -> None:
        """Does nothing. A fork starts the pending run immediately, so nobody would see the name
        `Submitting`, and to set it costs a request."""

    async def run(
        self,
        flow_run: FlowRun,
        configuration: RunConfiguration,
        task_status: TaskStatus[int] | None = None,
    ) -> RunExit:
        try:
            with tempfile.TemporaryDirectory() as folder:
                return await self._run_in(
                    folder, flow_run, configuration, task_status or anyio.TASK_STATUS_IGNORED
                )
        finally:
            self._announced = -ANNOUNCED_S  # more often than not a run waits: it is not counted
            # Once this run's slot has been given back.
            asyncio.get_running_loop().call_soon(self._ask)

    async def _run_in(
        self,
        folder: str,
        flow_run: FlowRun,
        configuration: RunConfiguration,
        task_status: TaskStatus[int],
    ) -> RunExit:
        """As Prefect's process worker does it; only the process is started in another way."""
        execution: FlowRunExecutionResult | None = None
        async with FlowRunExecutorContext() as context:
            executor = context.create_executor(
                flow_run,
                RunStarter(configuration.env, folder, context.control_channel),
                resolve_flow=_without_hooks,
                propose_submitting=False,
            )

            async def execute(*, task_status: TaskStatus[ProcessHandle]) -> None:
                nonlocal execution
                execution = await executor.submit(task_status=task_status)

            async with anyio.create_task_group() as group:
                handle = await group.start(execute)
                task_status.started(handle.pid)
        if execution is None or execution.status_code is None:
            raise FarmError(f"worker: the run {flow_run.name} could not be started")
        return RunExit(identifier=str(handle.pid), status_code=execution.status_code)

    def _ask(self) -> None:
        question = asyncio.ensure_future(self._ask_for_the_next())
        self._asking.add(question)
        question.add_done_callback(self._asking.discard)

    async def _ask_for_the_next(self) -> None:
        try:
            await self.get_and_submit_flow_runs()
        except (httpx.HTTPError, PrefectHTTPStatusError):
            return  # the next poll says what is wrong


IDLE_CHECK_S = 0.2


async def work(worker: FarmWorker) -> None:
    """Runs the worker until told to stop.

    SIGTERM: takes no more runs, ends when those it has have ended. SIGINT, or a second
    SIGTERM: stops immediately; a run dies with its worker.
    Raises: FarmError for a worker that ends although nobody told it to.
    """
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    told = asyncio.Event()

    def stop(why: str) -> None:
        told.set()
        print(f"{worker.name}: {why}", flush=True)
        task.cancel()

    def drain() -> None:
        if worker.draining.is_set():
            stop("stops immediately, because of a second SIGTERM")
        worker.draining.set()

    async def end_when_idle() -> None:
        await worker.draining.wait()
        print(f"{worker.name}: takes no more runs, because of SIGTERM", flush=True)
        while not worker.idle:
            await asyncio.sleep(IDLE_CHECK_S)
        stop("has no more runs, and stops")

    loop.add_signal_handler(signal.SIGINT, stop, "stops immediately, because of SIGINT")
    loop.add_signal_handler(signal.SIGTERM, drain)
    watcher = asyncio.create_task(end_when_idle())
    why = "Prefect's worker returned"
    try:
        await worker.start(printer=_silent)
    except asyncio.CancelledError:
        why = "its task was canceled"
    except Exception as error:
        why = "; ".join(dict.fromkeys(_reasons(error)))
    finally:
        watcher.cancel()
    if not told.is_set():
        raise FarmError(
            f"worker {worker.name}: it ended by itself",
            why=why,
            fix="start it again, once the server answers; Compose, Kubernetes and systemd do so",
        )


def _reasons(error: BaseException) -> list[str]:
    """What an error and those in its groups say. Prefect prints their tracebacks before."""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return [reason for one in group.exceptions for reason in _reasons(one)]
    said = ": ".join(filter(None, (type(error).__name__, str(error).strip())))
    return [said.splitlines()[0]]


def _silent(*_: Any, **__: Any) -> None:
    """Prefect's own greeting says less than ours."""
