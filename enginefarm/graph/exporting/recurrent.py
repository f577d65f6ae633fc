"""nn.GRU and nn.LSTM stay one operator while PyTorch traces them.

PyTorch writes one step after the other, which fixes the number of steps to that of the example.
ONNX has both as operators, and PyTorch's exporter has their translations.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

OPTIONS = (
    "Tensor[] params, bool has_biases, int num_layers, float dropout, bool train, "
    "bool bidirectional, bool batch_first"
)
SCHEMAS = {
    "gru": f"(Tensor input, Tensor hx, {OPTIONS}) -> (Tensor, Tensor)",
    "lstm": f"(Tensor input, Tensor[] hx, {OPTIONS}) -> (Tensor, Tensor, Tensor)",
}


@contextmanager
def kept() -> Generator[dict[Any, Any]]:
    """While this is open, both modules call an operator of ours. Yields its translations, as
    torch.onnx.export takes them."""
    rnn: Any = import_module("torch.nn.modules.rnn")
    ours, own = _operators(), rnn._VF
    rnn._VF = _Called(own, ours)
    try:
        core: Any = import_module("onnxscript.function_libs.torch_lib.ops.core")
        yield {ours[name]._opoverload: getattr(core, f"aten_{name}") for name in SCHEMAS}
    finally:
        rnn._VF = own


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

    The first state is a projected one. It comes in beside the input of the first step, which is
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
