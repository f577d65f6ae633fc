"""The farm's type of Prefect worker: a process worker that starts nothing but our runs.

A run that ends makes room for another: the queue is asked at once, not at the next poll.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
from prefect.exceptions import PrefectHTTPStatusError
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult

from enginefarm.farm.server.connection import POOL_TYPE, RUN_COMMAND

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


class RunConfiguration(ProcessJobConfiguration):
    """How a run is started: always the same way, whatever the pool's template says."""

    def prepare_for_flow_run(self, flow_run: FlowRun, *args: Any, **kwargs: Any) -> None:
        self.command = RUN_COMMAND
        self.env = {}
        self.working_dir = None
        super().prepare_for_flow_run(flow_run, *args, **kwargs)


class FarmWorker(ProcessWorker):
    """Takes runs until it is told to drain, and asks for the next when one has ended."""

    type = POOL_TYPE
    job_configuration = RunConfiguration

    def __init__(self, pool: str, queues: list[str] | None, *, name: str, limit: int) -> None:
        super().__init__(pool, queues, name=name, limit=limit, create_pool_if_not_found=False)
        self.draining = asyncio.Event()
        self._asking: set[asyncio.Task[None]] = set()

    @property
    def idle(self) -> bool:
        """Whether it has no run; also while it still starts."""
        return not self.is_setup or self.limiter.borrowed_tokens == 0

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        if self.draining.is_set():
            return []
        try:
            return await super().get_and_submit_flow_runs()
        except RuntimeError as error:
            # A crashed run was sent back before this worker had let go of its last attempt.
            # It comes again with the next poll; Prefect's worker would end here.
            if "already holding" not in str(error):
                raise
            return []

    async def run(self, *args: Any, **kwargs: Any) -> ProcessWorkerResult:
        try:
            return await super().run(*args, **kwargs)
        finally:
            # Once this run's slot has been given back.
            asyncio.get_running_loop().call_soon(self._ask)

    def _ask(self) -> None:
        question = asyncio.ensure_future(self._ask_for_the_next())
        self._asking.add(question)
        question.add_done_callback(self._asking.discard)

    async def _ask_for_the_next(self) -> None:
        try:
            await self.get_and_submit_flow_runs()
        except (httpx.HTTPError, PrefectHTTPStatusError):
            return  # the next poll says what is wrong
