"""How much memory a model above 2 GB takes: random weights, from PyTorch to an FP16 engine.

    python -m benchmarks.large_model [--layers 10] [--width 8192]      2.7 GB, half an hour

`enginefarm build` runs with an empty store and cache. Each of its processes is looked at twice
a second: what it alone holds (the unique set size, pages of mapped files included), over the
bytes of the weights.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks import machine
from benchmarks.farm_vs_script import build_command, of_its_own
from benchmarks.figures import Figure

MODEL = """
import torch
from torch import nn

def build(width, layers):
    torch.manual_seed(0)
    model = nn.Sequential()
    for _ in range(layers):
        layer = nn.Linear(width, width)
        nn.init.normal_(layer.weight, 0, (2 / width) ** 0.5)
        model.append(layer).append(nn.ReLU())
    return model.eval()
"""

RECIPE = """
name: large
source:
  kind: torch
  callable: "model.py:build"
  arguments: {{ width: {width}, layers: {layers} }}
inputs: [{{ name: x, dtype: float32, shape: [batch, {width}] }}]
outputs: [y]
profiles: [{{ dims: {{ batch: [1, 4, 8] }} }}]
precisions: [fp16]
gpus: [l4]
"""

STEP = "enginefarm.child.entry_point"


def main(arguments: Sequence[str] | None = None) -> list[Figure]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--width", type=int, default=8192)
    options = parser.parse_args(arguments)
    weights = options.layers * (options.width + 1) * options.width * 4
    with tempfile.TemporaryDirectory(prefix="large-") as folder, contextlib.ExitStack() as after:
        root = Path(folder)
        (root / "model.py").write_text(MODEL)
        (root / "recipe.yaml").write_text(RECIPE.format(**vars(options)))
        began = time.perf_counter()
        peaks = watched(root / "recipe.yaml", of_its_own(after))
        seconds = time.perf_counter() - began
    print(machine.described("torch", "onnxruntime", "tensorrt-rtx-cu13-libs"))
    print(f"{weights / 1e9:.2f} GB of weights, {seconds:.0f} s")
    for step, peak in sorted(peaks.items(), key=lambda one: -one[1]):
        print(f"{step:45}{peak / 1e9:7.2f} GB{peak / weights:7.2f} ×")
    return [Figure("largest process, over the weights", max(peaks.values()) / weights, "×", 3.2)]


def watched(recipe: Path, environment: dict[str, str]) -> dict[str, int]:
    """The function that a process of the build was started for -> the most that it held."""
    peaks: dict[str, int] = {}
    with subprocess.Popen(build_command(recipe), env=environment) as process:
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):
                for child in psutil.Process(process.pid).children(recursive=True):
                    _note(child, peaks)
            time.sleep(0.5)
    if process.returncode != 0:
        raise SystemExit("the build failed")
    return peaks


def _note(child: psutil.Process, peaks: dict[str, int]) -> None:
    with contextlib.suppress(psutil.Error):
        words = child.cmdline()
        if STEP in words:
            step = words[words.index(STEP) + 1]
            peaks[step] = max(peaks.get(step, 0), child.memory_full_info().uss)


if __name__ == "__main__":
    main()
