"""Assignments at a mask: a Where in the graph, and the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from tiny_models import CODE, recipe
from toy_graphs import run

from enginefarm.graph.exporting import export
from enginefarm.graph.model import walk

MASKED = """
class Masked(nn.Module):
    def forward(self, x):
        whole, rows, part = x.clone(), x * 2, x + 1
        whole[whole < 0] = 0.5
        rows[x.sum(-1) > 0] = torch.arange(4.0)
        part[:, 0][x[:, 1] > 0] = x[0, 0, 0]
        count = (x * 3).to(torch.int64)
        count[count > 1] = 7.9
        return whole, rows, part, count

def masked():
    return Masked()
"""


def test_it_is_a_where_with_the_same_numbers(tmp_path: Path) -> None:
    before = torch.Tensor.__setitem__
    made = recipe(
        tmp_path,
        code=CODE + MASKED,
        source={"kind": "torch", "callable": "code.py:masked"},
        inputs=[{"name": "x", "shape": ["batch", 3, 4]}],
        outputs=[],
        precisions=["fp16"],
        calibration=None,
        verification={"batches": 1, "batch_size": 2},
    )
    report = export.export_onnx(made, tmp_path / "out")
    kinds = {node.op_type for node in walk.nodes(onnx.load(report.path).graph)}
    assert "Where" in kinds
    assert "NonZero" not in kinds
    module: Any = export.load(made, tmp_path / "again").model
    x = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    for wanted, array in zip(
        module(torch.from_numpy(x)), run(report.path, x=x).values(), strict=True
    ):
        np.testing.assert_array_equal(array, wanted.numpy())
    assert torch.Tensor.__setitem__ is before
