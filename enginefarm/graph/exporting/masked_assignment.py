"""`x[mask] = value`, while PyTorch traces a model.

Its exporter writes the places of the mask with NonZero, which TensorRT-RTX lacks. A Where says the
same, where one value is for all places.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


@contextmanager
def as_where() -> Generator[None]:
    """While this is open, a tensor that is assigned at a mask is computed with `torch.where`, if
    the value is a number, or a tensor for the axes behind those of the mask."""
    torch: Any = import_module("torch")
    own = torch.Tensor.__setitem__

    def assign(data: Any, index: Any, value: Any) -> None:
        masked = isinstance(index, torch.Tensor) and index.dtype == torch.bool and index.ndim
        behind = data.ndim - index.ndim if masked else -1
        if behind < 0 or getattr(value, "ndim", 0) > behind:
            own(data, index, value)
            return
        data.copy_(torch.where(index.reshape(*index.shape, *[1] * behind), value, data))

    torch.Tensor.__setitem__ = assign
    try:
        yield
    finally:
        torch.Tensor.__setitem__ = own
