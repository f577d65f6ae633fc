"""Batches that are computed side by side come back in order, and few of them are in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from enginefarm.graph.model import ahead


def test_results_come_in_order_although_later_ones_are_ready_first() -> None:
    later = threading.Event()

    def run(batch: int) -> int:
        if batch == 0:
            assert later.wait(20), "the second batch does not run beside the first"
        later.set()
        return batch * 10

    assert list(ahead.each(run, range(4), 2)) == [(0, 0), (1, 10), (2, 20), (3, 30)]


@pytest.mark.parametrize("at_once", [1, 2])
def test_no_more_batches_are_read_than_may_be_in_memory(at_once: int) -> None:
    read: list[int] = []

    def batches() -> Iterator[int]:
        for number in range(5):
            read.append(number)
            yield number

    for done, _ in ahead.each(lambda batch: batch, batches(), at_once):
        assert len(read) <= done + at_once


@pytest.mark.parametrize("at_once", [1, 2])
def test_the_error_is_that_of_the_first_batch_that_fails(at_once: int) -> None:
    def run(batch: int) -> int:
        if batch:
            raise ValueError(f"batch {batch}")
        return batch

    found = ahead.each(run, range(4), at_once)
    assert next(found) == (0, 0)
    with pytest.raises(ValueError, match="batch 1"):
        next(found)
