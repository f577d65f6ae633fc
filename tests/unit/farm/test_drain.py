"""Whatever ends a worker is said in its log: what it was told, or why it ended by itself."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from enginefarm.errors import FarmError
from enginefarm.farm.worker import farm_worker
from enginefarm.farm.worker.farm_worker import FarmWorker

Work = Callable[[], Awaitable[None]]


def worker_that(work: Work) -> FarmWorker:
    worker = FarmWorker("gpu-t4", None, name="t4", limit=1)

    async def start(**_: Any) -> None:
        await work()

    worker.start = start  # type: ignore[method-assign]
    return worker


async def nothing() -> None:
    return


async def refused() -> None:
    raise ExceptionGroup(
        "unhandled errors in a TaskGroup",
        [
            RuntimeError("Service exceeded error threshold."),
            ExceptionGroup("inner", [httpx.ConnectError("All connection attempts failed")]),
        ],
    )


async def canceled() -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("work", "reasons"),
    [
        (nothing, ["Prefect's worker returned"]),
        (refused, ["RuntimeError: Service exceeded", "ConnectError: All connection attempts"]),
        (canceled, ["its task was canceled"]),
    ],
)
def test_a_worker_that_ends_by_itself_says_why(work: Work, reasons: list[str]) -> None:
    with pytest.raises(FarmError, match="worker t4: it ended by itself") as raised:
        asyncio.run(farm_worker.work(worker_that(work)))
    for reason in reasons:
        assert reason in raised.value.why


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGINT, "t4: stops immediately, because of SIGINT\n"),
        (
            signal.SIGTERM,
            "t4: takes no more runs, because of SIGTERM\nt4: has no more runs, and stops\n",
        ),
    ],
)
def test_a_worker_that_is_told_to_stop_says_so(
    number: signal.Signals, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def work() -> None:
        os.kill(os.getpid(), number)
        await asyncio.sleep(60)

    asyncio.run(farm_worker.work(worker_that(work)))
    assert capsys.readouterr().out == said
