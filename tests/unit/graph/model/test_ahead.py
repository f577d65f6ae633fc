"""Batches that are computed side by side come back in order, and few of them are in memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest

from enginefarm.graph.model import ahead

if TYPE_CHECKING:
    from enginefarm.graph.model.arrays import Arrays


def result(batch: int) -> Arrays:
    return {"y": np.array(batch)}


def test_results_come_in_order_although_later_ones_are_ready_first() -> None:
    later = threading.Event()

    def run(batch: int) -> Arrays:
        if batch == 1:
            assert later.wait(20), "the third batch does not run beside the second"
        elif batch == 2:
            later.set()
        return result(batch)

    found = list(ahead.each(run, range(4), 2))
    assert [(batch, int(made["y"])) for batch, made in found] == [(n, n) for n in range(4)]


@pytest.mark.parametrize("at_once", [1, 2])
def test_no_more_batches_are_read_than_may_be_in_memory(at_once: int) -> None:
    read: list[int] = []

    def batches() -> Iterator[int]:
        for number in range(5):
            read.append(number)
            yield number

    for done, _ in ahead.each(result, batches(), at_once):
        assert len(read) <= done + at_once


def test_large_results_are_made_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "MOST_BYTES", 7)  # a result has 8
    read: list[int] = []

    def run(batch: int) -> Arrays:
        read.append(batch)
        return result(batch)

    for done, _ in ahead.each(run, range(4), 2):
        assert read[-1] == done


@pytest.mark.parametrize("at_once", [1, 2])
def test_the_error_is_that_of_the_first_batch_that_fails(at_once: int) -> None:
    def run(batch: int) -> Arrays:
        if batch:
            raise ValueError(f"batch {batch}")
        return result(batch)

    found = ahead.each(run, range(4), at_once)
    assert next(found)[0] == 0
    with pytest.raises(ValueError, match="batch 1"):
        next(found)


def test_no_batch_is_no_result() -> None:
    assert list(ahead.each(result, [], 2)) == []
