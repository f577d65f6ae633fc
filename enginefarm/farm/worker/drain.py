"""How a worker stops.

SIGTERM lets a worker's runs end, SIGINT does not. A scheduler's stop (Compose, Kubernetes,
systemd) is SIGTERM and then a grace period; a build that is nearly done need not be lost to it.
"""

from __future__ import annotations

import asyncio
import signal
from typing import Any, cast

from enginefarm.errors import FarmError
from enginefarm.farm.worker.farm_worker import FarmWorker

IDLE_CHECK_S = 0.2


async def work(worker: FarmWorker) -> None:
    """Runs the worker until told to stop.

    SIGTERM: takes no more runs, ends when those it has have ended. SIGINT, or a second
    SIGTERM: stops at once; a run dies with its worker.
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
            stop("stops at once, because of a second SIGTERM")
        worker.draining.set()

    async def end_when_idle() -> None:
        await worker.draining.wait()
        print(f"{worker.name}: takes no more runs, because of SIGTERM", flush=True)
        while not worker.idle:
            await asyncio.sleep(IDLE_CHECK_S)
        stop("has no more runs, and stops")

    loop.add_signal_handler(signal.SIGINT, stop, "stops at once, because of SIGINT")
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
