"""Adaptive pooling, while PyTorch traces a model.

Its windows depend on the size. PyTorch's exporter writes those of the example into the graph, and
has no pooling to the largest value at all.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

MEANS = {f"adaptive_avg_pool{rank}d": rank for rank in (1, 2, 3)}
LARGEST = {f"adaptive_max_pool{rank}d": rank for rank in (1, 2, 3)}
"""Functions of torch.nn.functional -> how many axes they pool."""


@contextmanager
def of_dynamic_sizes() -> Generator[None]:
    """While this is open, these functions compute the windows of an axis from its size: means where
    the size is dynamic and more than one window is wanted. Others are PyTorch's own."""
    functional: Any = import_module("torch.nn.functional")
    own = {name: getattr(functional, name) for name in (*MEANS, *LARGEST)}
    for name, rank in MEANS.items():
        setattr(functional, name, _replaced(own[name], rank, _means, exported=True))
    for name, rank in LARGEST.items():
        setattr(functional, name, _replaced(own[name], rank, _largest, exported=False))
    try:
        yield
    finally:
        for name, function in own.items():
            setattr(functional, name, function)


def _replaced(own: Any, rank: int, pool: Callable[[Any, int, int], Any], *, exported: bool) -> Any:
    """exported: whether the exporter has `own` where no size is dynamic."""

    def pooled(input: Any, output_size: Any, *more: Any, **named: Any) -> Any:
        several = isinstance(output_size, list | tuple)
        sizes: list[Any] = [*output_size] if several else [output_size] * rank
        axes = [
            (axis - rank, size)
            for axis, size in enumerate(sizes)
            if size is not None and (type(input.shape[axis - rank]) is not int)
        ]
        theirs = exported and all(size == 1 for _, size in axes)
        if theirs or any(more) or any(named.values()):
            return own(input, output_size, *more, **named)
        for axis, size in enumerate(sizes):
            if size is not None:
                input = pool(input, axis - rank, size)
        return input

    return pooled


def _windows(data: Any, axis: int, count: int) -> Any:
    """For each window and each place of the axis, whether the place is in it: [count, size]."""
    torch: Any = import_module("torch")
    size = data.shape[axis]
    index = torch.arange(count, device=data.device).unsqueeze(1)
    place = torch.arange(size, device=data.device).unsqueeze(0)
    # Window i goes from floor(i * size / count) up to ceil((i + 1) * size / count).
    return ((place + 1) * count > index * size) & (place * count < (index + 1) * size)


def _means(data: Any, axis: int, count: int) -> Any:
    share = _windows(data, axis, count).to(data.dtype)
    share = share / share.sum(1, keepdim=True)
    return (data.transpose(axis, -1) @ share.transpose(0, 1)).transpose(axis, -1)


def _largest(data: Any, axis: int, count: int) -> Any:
    inside = _windows(data, axis, count)
    last = data.transpose(axis, -1).unsqueeze(-2)
    return last.masked_fill(~inside, float("-inf")).amax(-1).transpose(axis, -1)
