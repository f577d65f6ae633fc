"""Operators of PyTorch that its ONNX exporter lacks, written with operators that it has.

They are used only for a model that the exporter has refused, and its graph is compared with the
model as every other one. They take and return what the operators do, in torch's own words.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def table() -> dict[Any, Callable[..., Any]]:
    """PyTorch's default decompositions and ours, for `ExportedProgram.run_decompositions`."""
    torch: Any = import_module("torch")  # its operators have no types
    aten = torch.ops.aten
    made: dict[Any, Callable[..., Any]] = torch.export.default_decompositions()
    made.update(
        {
            aten._cdist_forward.default: _distances,
            aten.cummax.default: partial(_running, torch.amax),
            aten.cummin.default: partial(_running, torch.amin),
            aten.cumprod.default: _running_product,
            aten.kthvalue.default: _smallest,
            aten.median.dim: _median,
            aten.searchsorted.Tensor: _places,
        }
    )
    return made


def _running_product(data: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
    """Of n numbers, by a product of n for each: ONNX has a running sum alone."""
    import torch

    last = data.movedim(dim, -1).to(dtype or data.dtype)
    place = torch.arange(last.shape[-1], device=data.device)
    one = torch.ones((), dtype=last.dtype, device=data.device)
    factors = torch.where(place[:, None] >= place, last.unsqueeze(-2), one)
    return factors.prod(-1).movedim(-1, dim)


def _running(extreme: Callable[..., Tensor], data: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The largest or smallest number so far, and its last place: of n numbers, n for each."""
    import torch

    last = data.movedim(dim, -1)
    place = torch.arange(last.shape[-1], device=data.device)
    seen, each = place[:, None] >= place, last.unsqueeze(-2)
    values = extreme(torch.where(seen, each, last[..., :1, None]), -1)
    indices = torch.where(seen & (each == values.unsqueeze(-1)), place, -1).amax(-1)
    return values.movedim(-1, dim), indices.movedim(-1, dim)


def _smallest(data: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    values, indices = data.sort(dim)
    found = values.narrow(dim, k - 1, 1), indices.narrow(dim, k - 1, 1)
    return found if keepdim else (found[0].squeeze(dim), found[1].squeeze(dim))


def _median(data: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return _smallest(data, (data.shape[dim] + 1) // 2, dim, keepdim)


def _places(
    ordered: Tensor,
    values: Tensor,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:
    """Where values belong among ordered ones: how many of these are smaller, or not larger."""
    import torch

    if sorter is not None:
        ordered = ordered.gather(-1, sorter)
    values, ordered = values.unsqueeze(-1), ordered.unsqueeze(-2)
    before = ordered <= values if right or side == "right" else ordered < values
    return before.sum(-1, dtype=torch.int32 if out_int32 else torch.int64)


def _distances(left: Tensor, right: Tensor, power: float, how: int | None) -> Tensor:
    """Between all rows of two matrices. how: a hint for kernels, of no effect on the numbers."""
    apart = (left.unsqueeze(-2) - right.unsqueeze(-3)).abs()
    if power == 0:
        return (apart != 0).to(apart.dtype).sum(-1)
    if power == float("inf"):
        return apart.amax(-1)
    if power == 2:
        return (apart * apart).sum(-1).sqrt()
    return apart.sum(-1) if power == 1 else apart.pow(power).sum(-1).pow(1 / power)
