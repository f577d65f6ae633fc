"""Recipes and models small enough for unit tests, written to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from enginefarm.documents.recipe import Recipe
from enginefarm.recipes import file as recipe_file

CODE = '''
import numpy as np
import torch
from torch import nn


class Small(nn.Module):
    """x (batch, 3, 8, 8) -> scores (batch, 5)."""

    def __init__(self, channels=8):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, 5)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def small(channels=8):
    return Small(channels)


def fixed_batch():
    class Fixed(Small):
        def forward(self, x):
            return super().forward(x.reshape(4, 3, 8, 8))

    return Fixed()


def broken():
    model = Small()
    with torch.no_grad():
        model.conv.weight[0, 0, 0, 0] = float("nan")
    return model


def data(seed, batch_size=4):
    random = np.random.default_rng(seed)
    while True:
        yield {"x": random.normal(size=(batch_size, 3, 8, 8)).astype(np.float32)}
'''


def document(**changes: Any) -> dict[str, Any]:
    """A recipe as YAML would give it, with these top-level fields changed or added."""
    return {
        "name": "small",
        "source": {"kind": "torch", "callable": "code.py:small"},
        "inputs": [{"name": "x", "shape": ["batch", 3, 8, 8]}],
        "outputs": ["scores"],
        "profiles": [{"dims": {"batch": [1, 4, 8]}}],
        "precisions": ["fp16", "int8"],
        "gpus": ["t4"],
        "calibration": {"data": {"callable": "code.py:data"}, "batches": 4, "batch_size": 4},
        "verification": {"batches": 2, "class_scores": ["scores"]},
        **changes,
    }


def recipe(folder: Path, code: str = CODE, **changes: Any) -> Recipe:
    """The recipe, loaded from `folder`, where code.py is written too."""
    (folder / "code.py").write_text(code)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document(**changes)))
    return recipe_file.load(path)


def images(count: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {"x": random.normal(size=(count, 3, 8, 8)).astype(np.float32)}
