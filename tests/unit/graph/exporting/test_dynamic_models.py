"""PyTorch models whose sizes are dynamic where its exporter alone would fix them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tiny_models import recipe
from toy_graphs import run

from enginefarm.graph.exporting import export

CODE = """
import torch
from torch import nn
from torch.nn import functional as F


class Steps(nn.Module):
    '''Time first, two layers in both directions, a table for the longest sequence that it saw.'''

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.gru = nn.GRU(4, 6, num_layers=2, bidirectional=True)
        self.lstm = nn.LSTM(12, 8, batch_first=True)
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


PROJECTED = """
import torch
from torch import nn


class Projected(nn.Module):
    def __init__(self, given, **options):
        super().__init__()
        torch.manual_seed(0)
        self.given = given
        self.lstm = nn.LSTM(5, 8, proj_size=3, **options)

    def forward(self, x, h, c):
        steps, (last, cell) = self.lstm(x, (h, c) if self.given else None)
        return steps, last, cell, (h + 0 * last, c + 0 * cell)
"""


@pytest.mark.parametrize(
    ("given", "options"),
    [
        (True, {"num_layers": 2, "bidirectional": True, "batch_first": True}),
        (True, {"bias": False}),
        (False, {"bidirectional": True}),
    ],
)
def test_an_lstm_that_projects_its_state_is_one_that_does_not(
    tmp_path: Path, given: bool, options: dict[str, Any]
) -> None:
    first = options.get("batch_first", False)
    sides = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    made = recipe(
        tmp_path,
        PROJECTED,
        source={
            "kind": "torch",
            "callable": "code.py:Projected",
            "arguments": {"given": given, **options},
        },
        inputs=[
            {"name": "x", "shape": [*(("batch", "steps") if first else ("steps", "batch")), 5]},
            {"name": "h", "shape": [sides, "batch", 3]},
            {"name": "c", "shape": [sides, "batch", 8]},
        ],
        outputs=["y", "last", "cell", "h0", "c0"],
        profiles=[{"dims": {"steps": [2, 5, 9], "batch": [1, 2, 4]}}],
        precisions=["fp16"],
        calibration=None,
        verification={"batches": 1, "batch_size": 2},
    )
    report = export.export_onnx(made, tmp_path / "out")
    rng = np.random.default_rng(0)
    for steps, batch in ((2, 1), (3, 3), (9, 4)):
        shape = (batch, steps, 5) if first else (steps, batch, 5)
        shapes = {"x": shape, "h": (sides, batch, 3), "c": (sides, batch, 8)}
        x = {name: rng.standard_normal(one).astype(np.float32) for name, one in shapes.items()}
        with torch.no_grad():
            wanted = report.model(*map(torch.from_numpy, x.values()))
        found = run(report.path, x)
        for name, want in zip(made.outputs, [*wanted[:3], *wanted[3]], strict=True):
            np.testing.assert_allclose(found[name], want.numpy(), rtol=1e-4, atol=1e-5)
