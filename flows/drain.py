"""How a worker stops: SIGTERM lets its runs end, SIGINT does not.

A scheduler's stop (Compose, Kubernetes, systemd) is SIGTERM and then a grace period; a build
that is nearly done need not be lost to it.
"""

from __future__ import annotations

import asyncio
import signal
from typing import Any

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
    poll = worker.get_and_submit_flow_runs

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

    def drain() -> None:
        task.cancel() if draining.is_set() else draining.set()

    async def end_when_idle() -> None:
        await draining.wait()
        print(f"{worker.name}: takes no more runs", flush=True)
        while worker.limiter.borrowed_tokens > 0:
            await asyncio.sleep(IDLE_CHECK_S)
        task.cancel()

    # On the instance: a subclass would be registered as another type of worker.
    worker.get_and_submit_flow_runs = poll_unless_draining  # type: ignore[method-assign]
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
