"""Operators that PyTorch's exporter lacks: the same numbers, and a graph of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import CODE, recipe
from toy_graphs import run

from enginefarm.graph.exporting import decompositions, export, torch_failures

aten: Any = torch.ops.aten
RANDOM = torch.Generator().manual_seed(0)
X = torch.randn(3, 5, 7, generator=RANDOM)
ROWS = torch.randn(3, 4, 7, generator=RANDOM)
STEPS = torch.tensor([-1.0, 0.0, 0.0, 1.0])
TIES = torch.tensor([3, 1, 1, 3, 4, 0, 4])
EXTREMES = ("cummax", "cummin")
AT = torch.tensor([[-2.0, -1.0, 0.0], [0.5, 1.0, 3.0]])


@pytest.mark.parametrize(
    ("operator", "given", "named"),
    [
        *((aten.cumprod.default, (X, dim), {}) for dim in (0, 1, -1)),
        (aten.cumprod.default, ((X * 3).long(), 1), {}),
        (aten.cumprod.default, ((X * 3).long(), 1), {"dtype": torch.float32}),
        *((getattr(aten, name).default, (X, dim), {}) for name in EXTREMES for dim in (0, -1)),
        *((getattr(aten, name).default, (TIES, 0), {}) for name in EXTREMES),
        *((aten.median.dim, (X, dim, keep), {}) for dim in (1, 2) for keep in (False, True)),
        (aten.median.dim, (ROWS, 1), {}),
        (aten.kthvalue.default, (X, 3), {}),
        (aten.kthvalue.default, (X, 2, 1, True), {}),
        (aten.searchsorted.Tensor, (STEPS, AT), {}),
        (aten.searchsorted.Tensor, (STEPS, AT), {"right": True}),
        (aten.searchsorted.Tensor, (STEPS, AT), {"side": "right", "out_int32": True}),
        (aten.searchsorted.Tensor, (X.sort(-1).values, X), {}),
        (aten.searchsorted.Tensor, (X, X), {"sorter": X.argsort(-1)}),
        *((aten._cdist_forward.default, (X, ROWS, p, None), {}) for p in (0.0, 1.0, 2.0, 3.0)),
        (aten._cdist_forward.default, (X, ROWS, float("inf"), 1), {}),
    ],
)
def test_what_is_written_out_computes_what_the_operator_does(
    operator: Any, given: tuple[Any, ...], named: dict[str, Any]
) -> None:
    wanted, found = operator(*given, **named), decompositions.table()[operator](*given, **named)
    pairs = zip(wanted, found, strict=True) if isinstance(found, tuple) else [(wanted, found)]
    for one, other in pairs:
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)


ALL = """
class Every(nn.Module):
    def forward(self, x):
        rows = torch.cdist(x, x + 1)
        middle, place = x.median(1)
        steps = torch.cumprod(torch.sigmoid(x), 1)
        found = torch.searchsorted(torch.linspace(-1, 1, 5), x)
        highest, when = torch.cummax(x, 2)
        lowest, pooled = x.cummin(0).values, nn.functional.adaptive_max_pool1d(x, 3)
        return rows, middle, place, steps, found, highest, when, lowest, pooled

def every():
    return Every()
"""


def test_experts_of_transformers_have_another_implementation(tmp_path: Path) -> None:
    """In the words of torch 2.13 about a Mixtral of transformers 5.23, which then exports."""
    said = "No ONNX function found for <OpOverload(op='transformers.grouped_mm_fallback', overload="
    made = recipe(tmp_path, code=CODE)
    error = torch_failures.of_export(RuntimeError(said), torch.nn.Identity(), made)
    assert "the operator transformers.grouped_mm_fallback" in error.what
    assert "set_experts_implementation('batched_mm')" in error.fix


def test_a_model_with_operators_that_the_exporter_lacks_is_exported(tmp_path: Path) -> None:
    made = recipe(
        tmp_path,
        code=CODE + ALL,
        source={"kind": "torch", "callable": "code.py:every"},
        inputs=[{"name": "x", "shape": ["batch", 5, 8]}],
        outputs=[],
        precisions=["fp16"],
        calibration=None,
        verification={"batches": 1, "batch_size": 2},
    )
    report = export.export_onnx(made, tmp_path / "out")
    for name in ("cdist", "cummax", "cumprod", "median", "searchsorted"):
        assert f"aten.{name}" in " ".join(report.notes)
    x = np.random.default_rng(0).normal(size=(3, 5, 8)).astype(np.float32)
    found = run(report.path, x=x)
    module: Any = export.load(made, tmp_path / "again").model
    for wanted, array in zip(module(torch.from_numpy(x)), found.values(), strict=True):
        np.testing.assert_allclose(array, wanted.numpy(), rtol=1e-4, atol=1e-5)
