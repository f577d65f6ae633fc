"""PyTorch models whose sizes are dynamic where its exporter alone would fix them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tiny_models import recipe
from toy_graphs import run

from enginefarm.errors import ExportError
from enginefarm.graph.exporting import export

CODE = """
import torch
from torch import nn
from torch.nn import functional as F


class Steps(nn.Module):
    '''Time first, two layers in both directions, a table for the longest sequence that it saw.'''

    def __init__(self, proj_size=0):
        super().__init__()
        torch.manual_seed(0)
        self.gru = nn.GRU(4, 6, num_layers=2, bidirectional=True)
        self.lstm = nn.LSTM(12, 8, batch_first=True, proj_size=proj_size)
        self.mean = nn.AdaptiveAvgPool2d((5, 3))
        self.table = torch.zeros(0, 8)

    def forward(self, x, h):
        steps, last = self.gru(x, h)
        steps, (hidden, cell) = self.lstm(steps.transpose(0, 1))
        if len(self.table) < steps.shape[1]:
            self.table = torch.arange(steps.shape[1]).unsqueeze(1).expand(-1, 8) / 10
        steps = steps + self.table[: steps.shape[1]]
        large = F.adaptive_max_pool1d(steps.transpose(1, 2), 3)
        return steps, last, cell, self.mean(steps.unsqueeze(1)), large
"""


def test_recurrent_layers_pools_and_tables_are_dynamic(tmp_path: Path) -> None:
    made = recipe(
        tmp_path,
        CODE,
        source={"kind": "torch", "callable": "code.py:Steps"},
        inputs=[
            {"name": "x", "shape": ["steps", "batch", 4]},
            {"name": "h", "shape": [4, "batch", 6]},
        ],
        outputs=["y", "last", "cell", "mean", "large"],
        profiles=[{"dims": {"steps": [6, 9, 17], "batch": [1, 2, 4]}}],
        precisions=["fp16"],
        calibration=None,
        verification={"batches": 1, "batch_size": 2},
    )
    report = export.export_onnx(made, tmp_path / "out")
    kinds = [node.op_type for node in onnx.load(report.path).graph.node]
    assert (kinds.count("GRU"), kinds.count("LSTM")) == (2, 1)
    rng = np.random.default_rng(0)
    for steps, batch in ((6, 1), (7, 3), (13, 4), (17, 2)):
        x, h = (
            rng.standard_normal(shape).astype(np.float32)
            for shape in ((steps, batch, 4), (4, batch, 6))
        )
        with torch.no_grad():
            wanted = report.model(torch.from_numpy(x), torch.from_numpy(h))
        found = run(report.path, {"x": x, "h": h})
        for name, want in zip(made.outputs, wanted, strict=True):
            np.testing.assert_allclose(found[name], want.numpy(), rtol=1e-4, atol=1e-5)


def test_an_lstm_with_a_projection_is_refused_by_name(tmp_path: Path) -> None:
    made = recipe(
        tmp_path,
        CODE,
        source={"kind": "torch", "callable": "code.py:Steps", "arguments": {"proj_size": 3}},
        inputs=[{"name": "x", "shape": [9, 2, 4]}, {"name": "h", "shape": [4, 2, 6]}],
        profiles=[{"dims": {}}],
        precisions=["fp16"],
        calibration=None,
        verification={"batches": 1, "batch_size": 2},
    )
    with pytest.raises(ExportError, match=r"nn\.LSTM 'lstm' has proj_size=3") as caught:
        export.export_onnx(made, tmp_path / "out")
    assert "nn.Linear" in caught.value.fix
