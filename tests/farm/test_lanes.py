"""How many runs of one recipe a pool has at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from enginefarm.child.cancellation import CANCEL
from enginefarm.errors import BuildCancelled
from enginefarm.farm import shares as lanes
from enginefarm.farm.shares import Lanes


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(lanes, "LOOK_S", 0.01)
    monkeypatch.setattr(lanes, "RECOUNT_S", 0.02)
    yield
    CANCEL.clear()


def waiting(made: Lanes, pool: str) -> tuple[threading.Thread, threading.Event]:
    """A thread that takes a turn and gives it back; the event says that it had it."""
    had = threading.Event()

    def take() -> None:
        with made.turn(pool):
            had.set()

    thread = threading.Thread(target=take)
    thread.start()
    return thread, had


def test_who_comes_later_waits_for_a_place_of_that_pool_alone() -> None:
    made = Lanes(lambda pool: 2)
    with made.turn("a"):
        with made.turn("a"):
            thread, had = waiting(made, "a")
            with made.turn("b"):
                assert not had.wait(0.1)
        assert had.wait(5)
    thread.join()


def test_a_worker_more_is_a_place_more() -> None:
    widths = {"a": 1}
    made = Lanes(widths.__getitem__)
    with made.turn("a"):
        thread, had = waiting(made, "a")
        assert not had.wait(0.1)
        widths["a"] = 2
        assert had.wait(5)
    thread.join()


def test_a_cancelled_parent_waits_no_longer_and_keeps_no_place() -> None:
    made = Lanes(lambda pool: 1)
    with ExitStack() as held:
        held.enter_context(made.turn("a"))
        CANCEL.set()
        with pytest.raises(BuildCancelled), made.turn("a"):
            pass
    CANCEL.clear()
    with made.turn("a"):
        pass
