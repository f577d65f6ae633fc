"""Functions of PyTorch in other words, while it traces a model for its export.

Adaptive pooling: its windows depend on the size. The exporter writes those of the example into the
graph, and has no pooling to the largest value at all.

`x[mask] = value`: the exporter writes the places of the mask with NonZero, which TensorRT-RTX
lacks. A Where says the same, where one value is for all places.

nn.GRU and nn.LSTM: PyTorch writes one step after the other, which fixes the number of steps to that
of the example. ONNX has both as operators, and the exporter has their translations.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

MEANS = {f"adaptive_avg_pool{rank}d": rank for rank in (1, 2, 3)}
LARGEST = {f"adaptive_max_pool{rank}d": rank for rank in (1, 2, 3)}
"""Functions of torch.nn.functional -> how many axes they pool."""

OPTIONS = (
    "Tensor[] params, bool has_biases, int num_layers, float dropout, bool train, "
    "bool bidirectional, bool batch_first"
)
SCHEMAS = {
    "gru": f"(Tensor input, Tensor hx, {OPTIONS}) -> (Tensor, Tensor)",
    "lstm": f"(Tensor input, Tensor[] hx, {OPTIONS}) -> (Tensor, Tensor, Tensor)",
}


@contextmanager
def in_other_words() -> Generator[dict[Any, Any]]:
    """While this is open, torch computes with the functions of this module. Yields translations of
    our operators, as torch.onnx.export takes them."""
    torch: Any = import_module("torch")
    functional: Any = import_module("torch.nn.functional")
    rnn: Any = import_module("torch.nn.modules.rnn")
    core: Any = import_module("onnxscript.function_libs.torch_lib.ops.core")
    ours = _operators()
    pools = [(name, rank, _means, True) for name, rank in MEANS.items()]
    pools += [(name, rank, _largest, False) for name, rank in LARGEST.items()]
    replaced: list[tuple[Any, str, Any]] = [
        *(
            (functional, name, _pooled(getattr(functional, name), rank, pool, exported=exported))
            for name, rank, pool, exported in pools
        ),
        (torch.Tensor, "__setitem__", _assigned(torch.Tensor.__setitem__)),
        (rnn, "_VF", _Called(rnn._VF, ours)),
    ]
    own = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    for owner, name, function in replaced:
        setattr(owner, name, function)
    try:
        yield {ours[name]._opoverload: getattr(core, f"aten_{name}") for name in SCHEMAS}
    finally:
        for owner, name, function in own:
            setattr(owner, name, function)


def _pooled(own: Any, rank: int, pool: Callable[[Any, int, int], Any], *, exported: bool) -> Any:
    """Computes the windows of an axis from its size: means where the size is dynamic and more than
    one window is wanted. Others are PyTorch's own.

    exported: whether the exporter has `own` where no size is dynamic."""

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


def _assigned(own: Any) -> Any:
    """A tensor that is assigned at a mask is computed with `torch.where`, if the value is a number,
    or a tensor for the axes behind those of the mask."""
    torch: Any = import_module("torch")

    def assign(data: Any, index: Any, value: Any) -> None:
        masked = isinstance(index, torch.Tensor) and index.dtype == torch.bool and index.ndim
        behind = data.ndim - index.ndim if masked else -1
        if behind < 0 or getattr(value, "ndim", 0) > behind:
            own(data, index, value)
            return
        data.copy_(torch.where(index.reshape(*index.shape, *[1] * behind), value, data))

    return assign


class _Called:
    """PyTorch's functions of this kind, with ours in place of two of them."""

    def __init__(self, own: Any, ours: dict[str, Any]) -> None:
        self._own = own
        self._ours = ours

    def __getattr__(self, name: str) -> Any:
        own = getattr(self._own, name)
        if name not in self._ours:
            return own

        def called(*arguments: Any) -> Any:
            # The third is the weights, or the state where the sequences are packed.
            if not isinstance(arguments[2], list | tuple):
                return own(*arguments)
            _, _, weights, biased, layers, _, _, both, _ = arguments
            plain = len(weights) == layers * (2 if both else 1) * (4 if biased else 2)
            return (
                self._ours[name](*arguments) if plain else _projected(self._ours[name], *arguments)
            )

        return called


def _projected(
    lstm: Any,
    data: Tensor,
    hx: list[Tensor],
    params: list[Tensor],
    biased: bool,
    layers: int,
    dropout: float,
    train: bool,
    both: bool,
    batch_first: bool,
) -> Any:
    """An LSTM that projects its state (proj_size), by one that does not, as ONNX's: a step sees
    the state before it only through `recurrent @ projection`, which is one matrix.

    The first state is a projected one. It is an input next to that of the first step, which is
    the last one of the other direction."""
    import torch

    sides, each = 2 if both else 1, len(params) // (layers * (2 if both else 1))
    time, batch = (1, 0) if batch_first else (0, 1)
    place = torch.arange(data.shape[time]).unsqueeze(batch).unsqueeze(-1)
    starts = (place == 0, place == data.shape[time] - 1)
    hidden: list[Tensor] = []
    cells: list[Tensor] = []
    for first in range(0, layers * sides, sides):
        states, cell = hx[0][first : first + sides], hx[1][first : first + sides]
        weights = [params[each * side :][:each] for side in range(first, first + sides)]
        given: list[Tensor] = []
        for side, (inward, recurrent, *biases, projection) in enumerate(weights):
            beside = [recurrent * (side == other) for other in range(sides)]
            given += [torch.cat([inward, *beside], 1), recurrent @ projection, *biases]
        come = [states[side].unsqueeze(time) * starts[side] for side in range(sides)]
        steps, last, cell = lstm(
            *(torch.cat([data, *come], -1), [torch.zeros_like(cell), cell], given),
            *(biased, 1, 0.0, train, both, batch_first),
        )
        projections = [one[-1].T for one in weights]
        parts = zip(steps.chunk(sides, -1), projections, strict=True)
        data = torch.cat([part @ projection for part, projection in parts], -1)
        hidden += [one @ projection for one, projection in zip(last, projections, strict=True)]
        cells.append(cell)
    return data, torch.stack(hidden), torch.cat(cells)


@cache
def _operators() -> dict[str, Any]:
    torch: Any = import_module("torch")
    made: dict[str, Any] = {}
    for name, schema in SCHEMAS.items():
        own: Callable[..., Any] = getattr(torch, name)

        def run(*arguments: Any, own: Callable[..., Any] = own) -> Any:
            return own(*arguments)

        made[name] = torch.library.custom_op(
            f"enginefarm::{name}", run, mutates_args=(), schema=schema
        )
        made[name].register_fake(_shapes)
    return made


def _shapes(data: Any, hx: Any, params: Any, *options: Any) -> Any:
    """Results of the right shapes: all steps, then the last state, for an LSTM two of them."""
    _, layers, _, _, both, batch_first = options
    states = [hx] if hasattr(hx, "new_empty") else list(hx)
    count, hidden = 2 if both else 1, states[0].shape[-1]
    first, second = data.shape[:2]
    batch = first if batch_first else second
    steps = data.new_empty((first, second, count * hidden))
    return steps, *(data.new_empty((layers * count, batch, one.shape[-1])) for one in states)
