"""How a worker goes on to its next run, and how it stops.

A run that ends makes room for another: the queue is asked at once, not at the next poll.

SIGTERM lets a worker's runs end, SIGINT does not. A scheduler's stop (Compose, Kubernetes,
systemd) is SIGTERM and then a grace period; a build that is nearly done need not be lost to it.
"""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import httpx
from prefect.exceptions import PrefectHTTPStatusError
from prefect.workers.process import ProcessWorker

IDLE_CHECK_S = 0.2


async def work(worker: ProcessWorker) -> None:
    """Runs the worker until told to stop.

    SIGTERM: takes no more runs, ends when those it has have ended. SIGINT, or a second
    SIGTERM: stops at once; a run dies with its worker.
    """
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    draining = asyncio.Event()
    poll, run = worker.get_and_submit_flow_runs, worker.run
    asking: set[asyncio.Task[None]] = set()

    async def poll_unless_draining() -> Any:
        if draining.is_set():
            return []
        try:
            return await poll()
        except RuntimeError as error:
            # A crashed run was sent back before this worker had let go of its last attempt.
            # It comes again with the next poll; Prefect's worker would end here.
            if "already holding" not in str(error):
                raise
            return []

    async def ask_for_the_next() -> None:
        try:
            await poll_unless_draining()
        except (httpx.HTTPError, PrefectHTTPStatusError):
            return  # the next poll says what is wrong

    def asked() -> None:
        question = loop.create_task(ask_for_the_next())
        asking.add(question)
        question.add_done_callback(asking.discard)

    async def run_and_ask(*args: Any, **kwargs: Any) -> Any:
        try:
            return await run(*args, **kwargs)
        finally:
            loop.call_soon(asked)  # once this run's slot has been given back

    def drain() -> None:
        task.cancel() if draining.is_set() else draining.set()

    async def end_when_idle() -> None:
        await draining.wait()
        print(f"{worker.name}: takes no more runs", flush=True)
        # One that still starts has no runs, nor anything yet to count them.
        while worker.is_setup and worker.limiter.borrowed_tokens > 0:
            await asyncio.sleep(IDLE_CHECK_S)
        task.cancel()

    # On the instance: a subclass would be registered as another type of worker.
    worker.get_and_submit_flow_runs = poll_unless_draining  # type: ignore[method-assign]
    worker.run = run_and_ask  # type: ignore[method-assign]
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    loop.add_signal_handler(signal.SIGTERM, drain)
    watcher = asyncio.create_task(end_when_idle())
    try:
        await worker.start(printer=_silent)
    except asyncio.CancelledError:
        return
    finally:
        watcher.cancel()


def _silent(*_: Any, **__: Any) -> None:
    """Prefect's own greeting says less than ours."""
