"""Computes a PyTorch module of half or bfloat16 numbers in FP32.

The reference is what the model says in FP32: rounding after each of its steps would count as an
error of every engine. Its weights are FP32 numbers already, and keep their values; what it
returns is rounded to the type that it returns.
"""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from enginefarm.graph.sources import forward

if TYPE_CHECKING:
    from torch import Tensor, nn


def narrow(module: nn.Module) -> bool:
    """Whether it has weights or buffers of half or bfloat16."""
    return any(value.dtype in _narrow() for value in (*module.parameters(), *module.buffers()))


@contextmanager
def watched() -> Generator[list[Any]]:
    """Lists the types of half and bfloat16 that a function of torch returns inside the block. A
    module whose weights are FP32 computes in these under torch.autocast."""
    overrides: Any = import_module("torch.overrides")  # typed in part
    seen: list[Any] = []

    class Watch(overrides.TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            made = func(*args, **(kwargs or {}))
            kind = getattr(made, "dtype", None)
            if kind in _narrow() and kind not in seen:
                seen.append(kind)
            return made

    with Watch():
        yield seen


class InFp32:
    """The module, to be called as it is; it takes and returns tensors of the same types, but
    bfloat16 comes back as float32, since numpy has no such type."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._wide: nn.Module = copy.deepcopy(module).float()
        self._returned: list[Any] = []

    def __call__(self, *given: Tensor) -> list[Tensor]:
        import torch

        if not self._returned:
            self._returned = [leaf.dtype for leaf in forward.tensors(self._module(*given))]
        with _asked_for_fp32():
            found = forward.tensors(self._wide(*map(_wide, given)))
        return [
            leaf.to(kind) if kind != torch.bfloat16 else leaf.to(kind).float()
            for leaf, kind in zip(found, self._returned, strict=True)
        ]


def _narrow() -> tuple[Any, ...]:
    import torch

    return torch.float16, torch.bfloat16


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _narrow() else tensor


def _asked_for_fp32() -> Any:
    """While it is entered, whatever asks torch for half or bfloat16 numbers gets FP32 ones."""
    torch: Any = import_module("torch")
    modes: Any = import_module("torch.utils._python_dispatch")  # typed in part

    def wide_kind(value: Any) -> Any:
        narrow = isinstance(value, torch.dtype) and value in _narrow()
        return torch.float32 if narrow else value

    class Wide(modes.TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            asked = {name: wide_kind(value) for name, value in (kwargs or {}).items()}
            return func(*map(wide_kind, args), **asked)

    return Wide()
