"""Two commands on a machine with a GPU and no farm: `build` natively, then `bench run`.

With /opt/ort first on PYTHONPATH, ONNX Runtime's CUDA and TensorRT providers take part too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

LABEL = os.environ.get("ENGINEFARM_GPU_LABEL", "h100")
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-c", "from enginefarm.cli import main; main()", *arguments],
            env={
                **os.environ,
                "ENGINEFARM_HOME": str(tmp_path / "home"),
                "ENGINEFARM_CACHE": str(tmp_path / "cache"),
            },
            capture_output=True,
            encoding="utf-8",
            timeout=200,
            check=False,
        )
        print(" ".join(arguments), done.stdout, done.stderr, sep="\n")
        return done

    return run


@pytest.fixture
def recipe(models: Path, tmp_path: Path) -> Path:
    shutil.copy(models / "conv.onnx", tmp_path / "conv.onnx")
    x = np.random.default_rng(0).standard_normal((16, 3, 16, 16)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    written = {
        "name": "conv",
        "source": {"kind": "onnx", "path": "conv.onnx"},
        "inputs": [{"name": "x", "shape": ["n", 3, 16, 16]}],
        "profiles": [{"dims": {"n": [1, 8, 32]}}],
        "precisions": ["fp16"],
        "gpus": [LABEL],
        "toolchain": "tensorrt",
        "builder": {
            "tactic_sources": ["EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"],
            "optimization_level": 0,
        },
        "verification": {"data": {"path": "data.npz"}, "batches": 2, "batch_size": 8},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(written, sort_keys=False))
    return tmp_path / "recipe.yaml"


def test_built_and_timed_beside_onnx_runtime(command: Command, recipe: Path) -> None:
    assert command("build", str(recipe)).returncode == 0
    done = command("bench", "run", str(recipe), "--seconds", "0.5", "--json")
    assert done.returncode == 0
    rows = json.loads(done.stdout)
    for row in rows:
        graph = " + CUDA graph" if row["cuda_graph"] else ""
        print(
            f"| {row['runtime']} {row['precision']}{graph} | {row['batch']} "
            f"| {row['latency_ms_median']:.3f} | {row['cov_verdict']} | {row['cosine_min']} |"
        )
        assert row["gpu"] == LABEL
    engines = [row for row in rows if row["runtime"] == "tensorrt"]
    assert sorted((row["batch"], row["cuda_graph"]) for row in engines) == [
        (1, False),
        (1, True),
        (8, False),
        (8, True),
    ]
    names = {
        "CUDAExecutionProvider": "onnxruntime-cuda",
        "TensorrtExecutionProvider": "onnxruntime-tensorrt",
    }
    for provider in import_module("onnxruntime").get_available_providers():
        if provider in names:
            beside = [row for row in rows if row["runtime"] == names[provider]]
            assert {row["precision"] for row in beside} == {"fp32", "fp16"}
            assert all(row["cosine_min"] > 0.999 for row in beside)
