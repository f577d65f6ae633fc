"""A recipe's share of a pool: as many runs as the pool has workers, and one that waits.

Prefect serves a queue in order. A recipe that queued all its engines would make every other recipe
wait until the last one is built. So each recipe has at most one more run in a pool than
the pool has workers, and recipes that build at the same time take turns.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager

from enginefarm.child.cancellation import CANCEL
from enginefarm.errors import BuildCancelled

LOOK_S = 0.5
RECOUNT_S = 15.0
"""How often the workers of a pool are counted again, in seconds."""


class Lanes:
    """The lanes of one parent run. width: how many of its runs a pool may have."""

    def __init__(self, width: Callable[[str], int]) -> None:
        self._width = width
        self._lock = threading.Lock()
        self._taken: Counter[str] = Counter()
        self._counted: dict[str, tuple[float, int]] = {}

    @contextmanager
    def turn(self, pool: str) -> Generator[None]:
        """Waits for a place in the pool and keeps it while the block runs.

        Raises: BuildCancelled when this process is to stop; what `width` raises.
        """
        while not self._take(pool):
            if CANCEL.wait(LOOK_S):
                raise BuildCancelled("the parent run was cancelled")
        try:
            yield
        finally:
            with self._lock:
                self._taken[pool] -= 1

    def _take(self, pool: str) -> bool:
        counted_at, width = self._counted.get(pool, (0.0, 0))
        if not width or time.monotonic() - counted_at > RECOUNT_S:
            width = self._width(pool)
            self._counted[pool] = (time.monotonic(), width)
        with self._lock:
            free = self._taken[pool] < width
            self._taken[pool] += free
            return free
