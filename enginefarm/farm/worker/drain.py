"""How a worker stops.

SIGTERM lets a worker's runs end, SIGINT does not. A scheduler's stop (Compose, Kubernetes,
systemd) is SIGTERM and then a grace period; a build that is nearly done need not be lost to it.
"""

from __future__ import annotations

import asyncio
import signal
from typing import Any

from enginefarm.farm.worker.farm_worker import FarmWorker

IDLE_CHECK_S = 0.2


async def work(worker: FarmWorker) -> None:
    """Runs the worker until told to stop.

    SIGTERM: takes no more runs, ends when those it has have ended. SIGINT, or a second
    SIGTERM: stops at once; a run dies with its worker.
    """
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()

    def drain() -> None:
        task.cancel() if worker.draining.is_set() else worker.draining.set()

    async def end_when_idle() -> None:
        await worker.draining.wait()
        print(f"{worker.name}: takes no more runs", flush=True)
        while not worker.idle:
            await asyncio.sleep(IDLE_CHECK_S)
        task.cancel()

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
