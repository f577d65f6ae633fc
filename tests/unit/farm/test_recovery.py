"""The control worker's look for lost runs goes on, whatever happens beside it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from enginefarm.farm import recovery


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing waits for the threads in a worker, which ends; here another test comes next."""
    before = set(threading.enumerate())
    monkeypatch.setattr(recovery, "get_client", lambda **_: nullcontext(object()))
    monkeypatch.setattr(recovery, "SWEEP_S", 0.01)
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
        assert not thread.is_alive(), thread.name


@pytest.mark.usefixtures("looks")
def test_a_store_that_does_not_answer_keeps_no_lost_run_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, answered, swept = threading.Event(), threading.Event(), threading.Semaphore(0)

    def store_away() -> object:
        asked.set()
        answered.wait(60)
        raise OSError("the store is away")

    monkeypatch.setattr(recovery.stages, "here", store_away)
    monkeypatch.setattr(recovery.Sweep, "once", lambda self, client: swept.release())
    with recovery.watching():
        assert asked.wait(30)
        for _ in range(3):
            assert swept.acquire(timeout=30), "nobody looked while the store was asked"
    answered.set()


@pytest.mark.usefixtures("looks")
def test_a_look_that_goes_wrong_is_not_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    swept = threading.Semaphore(0)

    def once(self: recovery.Sweep, client: object) -> None:
        swept.release()
        raise RuntimeError("something that nobody thought of")

    monkeypatch.setattr(recovery, "_keep_house", lambda client: lambda: None)
    monkeypatch.setattr(recovery.Sweep, "once", once)
    with recovery.watching():
        for _ in range(3):
            assert swept.acquire(timeout=30), "the look ended with the first fault"
