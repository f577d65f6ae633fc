"""Runs of a graph side by side: much of a graph computes on one core, and the next batch can have
another."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from enginefarm.graph.model import walk

if TYPE_CHECKING:
    from onnx import ModelProto

    from enginefarm.graph.model.arrays import Arrays

Batch = TypeVar("Batch")

AT_ONCE = min(2, os.cpu_count() or 1)
MOST_BYTES = 512 << 20
"""Batches whose results are larger are computed one at a time: calibration's results contain every
value inside the graph."""


def at_once(model: ModelProto) -> int:
    """How many batches may be in memory with what the graph makes of them."""
    return AT_ONCE if walk.is_small(model) else 1


def each(
    run: Callable[[Batch], Arrays], batches: Iterable[Batch], at_once: int
) -> Iterator[tuple[Batch, Arrays]]:
    """Each batch with what `run` returns for it, in order. Batches are read by the caller's thread.

    at_once: how many are computed in parallel, without the one that the caller has just got, once
    the first has shown how large a result is. A caller who has seen all of a large result clears
    it.
    """
    left = iter(batches)
    for first in left:
        result = run(first)
        if sum(array.nbytes for array in result.values()) > MOST_BYTES:
            at_once = 1
        yield first, result
        break
    if at_once == 1:
        yield from ((batch, run(batch)) for batch in left)
        return
    with ThreadPoolExecutor(at_once) as pool:
        begun: deque[tuple[Batch, Future[Arrays]]] = deque()
        for batch in left:
            begun.append((batch, pool.submit(run, batch)))
            if len(begun) == at_once:
                ready, future = begun.popleft()
                yield ready, future.result()
        for ready, future in begun:
            yield ready, future.result()
