"""Passes in a queue, timed on the GPU's clock as trtexec times them (docs/decisions/0294): the next
one is enqueued before the host waits for the one before, so that the GPU never waits for the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from enginefarm.run.session import Session

DEPTH = 2


class Queue:
    """A queue of two passes of one session, which is bound already. Nothing is copied."""

    def __init__(self, cuda: Any, session: Session) -> None:
        self._session = session
        # Events without the blocking flag: the host spins.
        self._events = [(cuda.Event(), cuda.Event()) for _ in range(DEPTH)]

    def passes(self, goes_on: Callable[[int], bool]) -> list[float]:
        """What each pass took in ms.

        goes_on: whether to enqueue one more, given how many are done. One pass more is done, since
        it is in the queue already.
        """
        taken: list[float] = []
        self._enqueue(0)
        while goes_on(len(taken)):
            self._enqueue(len(taken) + 1)
            taken.append(self._waited(len(taken)))
        taken.append(self._waited(len(taken)))
        return taken

    def _enqueue(self, index: int) -> None:
        begin, end = self._events[index % DEPTH]
        begin.record(self._session.stream)
        self._session.compute()
        end.record(self._session.stream)

    def _waited(self, index: int) -> float:
        begin, end = self._events[index % DEPTH]
        end.synchronize()
        return float(end.time_since(begin))
