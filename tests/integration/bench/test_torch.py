"""PyTorch as `bench run` times it: a recipe's model, loaded and called in a process of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from enginefarm.documents.recipe import Recipe
from enginefarm.recipes import file as recipe_file
from enginefarm.run.contenders import torch_in_a_process

MODEL = """
import torch


class Scaled(torch.nn.Module):
    def forward(self, factor, x):
        return {"y": x * factor, "count": 3}


def scaled():
    return Scaled()
"""
RECIPE = """
name: scaled
source: { kind: torch, callable: "model.py:scaled" }
inputs:
  - { name: x, dtype: float32, shape: [2, 3] }
  - { name: factor, dtype: float32, shape: [2, 1] }
profiles: [{}]
precisions: [fp32]
gpus: [l4]
"""


def recipe(folder: Path) -> Recipe:
    (folder / "model.py").write_text(MODEL)
    (folder / "recipe.yaml").write_text(RECIPE)
    return recipe_file.load(folder / "recipe.yaml")


def test_it_is_given_its_inputs_by_name_and_only_its_tensors_count(tmp_path: Path) -> None:
    contender = torch_in_a_process("PyTorch", recipe(tmp_path), outputs=["y"], device="cpu")
    try:
        x = np.arange(6, dtype=np.float32).reshape(2, 3)
        contender.bind({"x": x, "factor": np.array([[2], [10]], np.float32)})
        assert contender.iterate().total > 0
        assert contender.outputs()["y"].tolist() == [[0, 2, 4], [30, 40, 50]]
    finally:
        contender.close()
