"""nn.GRU and nn.LSTM stay one operator while PyTorch traces them.

PyTorch writes one step after the other, which fixes the number of steps to that of the example.
ONNX has both as operators, and PyTorch's exporter has their translations.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

from enginefarm.errors import ExportError

OPTIONS = (
    "Tensor[] params, bool has_biases, int num_layers, float dropout, bool train, "
    "bool bidirectional, bool batch_first"
)
SCHEMAS = {
    "gru": f"(Tensor input, Tensor hx, {OPTIONS}) -> (Tensor, Tensor)",
    "lstm": f"(Tensor input, Tensor[] hx, {OPTIONS}) -> (Tensor, Tensor, Tensor)",
}


def refuse_projections(model: Any) -> None:
    """Raises: ExportError for an nn.LSTM that projects its state, which ONNX's LSTM does not."""
    kind: Any = import_module("torch.nn").LSTM
    for name, part in model.named_modules():
        if isinstance(part, kind) and part.proj_size:
            raise ExportError(
                f"source: the nn.LSTM {name or type(model).__name__!r} has proj_size="
                f"{part.proj_size}",
                why="ONNX's LSTM has no projection of its state, and PyTorch's exporter leaves it "
                "out of the graph",
                fix="train it without proj_size, with an nn.Linear behind it; or write its steps "
                "with nn.Linear, for a fixed number of them",
            )


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
            plain = isinstance(arguments[2], list | tuple)
            return (self._ours[name] if plain else own)(*arguments)

        return called


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
