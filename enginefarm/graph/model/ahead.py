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

Batch = TypeVar("Batch")
Result = TypeVar("Result")

AT_ONCE = min(2, os.cpu_count() or 1)


def at_once(model: ModelProto) -> int:
    """How many batches may be in memory with what the graph makes of them."""
    return AT_ONCE if walk.is_small(model) else 1


def each(
    run: Callable[[Batch], Result], batches: Iterable[Batch], at_once: int
) -> Iterator[tuple[Batch, Result]]:
    """Each batch with what `run` returns for it, in order. Batches are read by the caller's thread.

    at_once: how many are computed side by side, beside the one that the caller has just got. A
    caller who has seen all of a large result clears it.
    """
    if at_once == 1:
        yield from ((batch, run(batch)) for batch in batches)
        return
    with ThreadPoolExecutor(at_once) as pool:
        begun: deque[tuple[Batch, Future[Result]]] = deque()
        for batch in batches:
            begun.append((batch, pool.submit(run, batch)))
            if len(begun) == at_once:
                first, result = begun.popleft()
                yield first, result.result()
        for first, result in begun:
            yield first, result.result()
