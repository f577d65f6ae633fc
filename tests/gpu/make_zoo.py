"""Recipes that a machine with a GPU can build without the libraries that make their data:

    python tests/gpu/make_zoo.py MODELS FOLDER NAME …

MODELS/NAME holds recipe.yaml, model.onnx and data.py, as the collection of models has them.
FOLDER/NAME then holds a recipe for TensorRT 8.6, the same model, and the data as arrays.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

LABEL = os.environ.get("ENGINEFARM_GPU_LABEL", "h100")


def arrays(source: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """The batches that a recipe asks of FILE.py:FUNCTION, one behind another."""
    file, _, function = wanted["data"]["callable"].partition(":")
    spec = importlib.util.spec_from_file_location("data", source / file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = getattr(module, function)(seed=wanted["seed"], batch_size=wanted["batch_size"])
    batches = [*itertools.islice(made, wanted["batches"])]
    return {name: np.concatenate([one[name] for one in batches]) for name in batches[0]}


def portable(source: Path, dest: Path) -> None:
    recipe = yaml.safe_load((source / "recipe.yaml").read_text())
    dest.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "model.onnx", dest)
    for part in ("calibration", "verification"):
        np.savez(dest / f"{part}.npz", **arrays(source, recipe[part]))
        recipe[part]["data"] = {"path": f"{part}.npz"}
    recipe |= {
        "precisions": ["fp32", "fp16", "int8"],
        "gpus": [LABEL],
        "toolchain": "tensorrt",
        # cuBLAS and cuDNN of CUDA 12 are not on the machine.
        "builder": {"tactic_sources": ["EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"]},
    }
    (dest / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))


if __name__ == "__main__":
    for name in sys.argv[3:]:
        portable(Path(sys.argv[1]) / name, Path(sys.argv[2]) / name)
