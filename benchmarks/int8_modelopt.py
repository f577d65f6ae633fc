"""INT8 of ours beside NVIDIA's modelopt, on the same graph, calibration data and reference.

    python -m venv /tmp/modelopt
    /tmp/modelopt/bin/pip install 'nvidia-modelopt[onnx]==0.47.0'
    python -m benchmarks.int8_modelopt --python /tmp/modelopt/bin/python RECIPE …

modelopt pins older versions of onnx and ONNX Runtime, and so lives in an environment of its own;
nothing of it is part of enginefarm. Both graphs are judged in this one: every result of 16 bits
rounded, on data that neither was calibrated on, without a search for nodes to keep wide.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.figures import Figure
from enginefarm.documents.recipe import Recipe
from enginefarm.graph.exporting import export, slim
from enginefarm.graph.model import onnx_files
from enginefarm.graph.precisions import precision
from enginefarm.graph.precisions.evidence import Evidence
from enginefarm.graph.samples import data, feeds
from enginefarm.graph.verification import verify
from enginefarm.graph.verification.reference import make_reference
from enginefarm.recipes import file as recipe_file

METHODS = ("entropy", "max")
"""Of modelopt; the first is its default."""
THEIRS = """
import json, sys
import numpy as np
from onnxruntime.quantization.calibrate import CalibrationDataReader
from modelopt.onnx.quantization import quantize


class Batches(CalibrationDataReader):
    def __init__(self, path):
        self.archive, self.next = np.load(path), 0
        self.names = json.loads(str(self.archive["names"]))

    def get_next(self):
        found = {n: self.archive[f"{self.next}/{n}"] for n in self.names
                 if f"{self.next}/{n}" in self.archive.files}
        self.next += 1
        return found or None

    def rewind(self):
        self.next = 0

    def get_first(self):
        return {n: self.archive[f"0/{n}"] for n in self.names}


graph, batches, method, made = sys.argv[1:]
quantize(graph, quantize_mode="int8", calibration_method=method, output_path=made,
         calibration_data_reader=Batches(batches), calibration_eps=["cpu"], log_level="ERROR")
"""


def main(arguments: Sequence[str] | None = None) -> list[Figure]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="+", type=Path)
    parser.add_argument("--python", type=Path, required=True, help="of modelopt's environment")
    options = parser.parse_args(arguments)
    print(machine.described("onnx", "onnxruntime", "torch"))
    print(f"theirs: {_versions(options.python)}\n")
    print("| model | quantized by | SQNR dB | cosine | Q/DQ operators | seconds |")
    print("|---|---|---|---|---|---|")
    figures: list[Figure] = []
    for path in options.recipes:
        with tempfile.TemporaryDirectory(prefix="enginefarm-bench-") as folder:
            figures.append(_one(recipe_file.load(path), Path(folder), options.python))
    return figures


def _one(recipe: Recipe, folder: Path, python: Path) -> Figure:
    exported = export.export_onnx(recipe, folder / "export")
    reference = make_reference(
        recipe, exported.model, folder / "reference.npz", outputs=exported.outputs
    )
    batch = feeds.sample(recipe)
    corners = [feeds.sized(batch, recipe, dims) for _, dims in feeds.corners(recipe)]
    source = slim.slim_onnx(exported.path, folder / "slim", corners).path
    batches = list(data.calibration_batches(recipe))
    _keep(batches, folder / "batches.npz")
    best = -math.inf
    for method in METHODS:
        started = time.monotonic()
        made = folder / f"modelopt-{method}.onnx"
        command = [python, "-c", THEIRS, source, folder / "batches.npz", method, made]
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, check=False
        )
        seconds = time.monotonic() - started
        if done.returncode != 0:
            why = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
            print(f"| {recipe.name} | modelopt {method} | fails: {why} | | | |", flush=True)
            continue
        best = max(best, _row(recipe, f"modelopt {method}", made, reference, seconds))
    started = time.monotonic()
    assert recipe.calibration is not None, "the recipe asks for int8"
    auto = recipe.calibration.model_copy(update={"method": "auto"})
    ours = recipe.model_copy(update={"calibration": auto}).at(recipe.root)
    report = precision("int8").convert(source, folder / "ours", ours, batches, Evidence(reference))
    label = f"enginefarm auto ({report.details['method']})"
    found = _row(recipe, label, report.path, reference, time.monotonic() - started)
    # Where theirs failed nothing was compared, and no aim is met.
    ahead = found - best if math.isfinite(best) else math.nan
    return Figure(f"INT8 SQNR over modelopt's best, dB, {recipe.name}", ahead, at_least=0.0)


def _keep(batches: Sequence[dict[str, Any]], path: Path) -> None:
    arrays = {f"{i}/{name}": array for i, one in enumerate(batches) for name, array in one.items()}
    np.savez(path, names=json.dumps(list(batches[0])), **arrays)


def _row(recipe: Recipe, label: str, onnx: Path, reference: Path, seconds: float) -> float:
    found = verify.verify_graph(
        onnx, reference, recipe.budget("int8"), recipe.verification.comparing
    )
    worst = max(found.outputs, key=lambda output: output.relative_l2)
    sqnr = -20 * math.log10(max(worst.relative_l2, 1e-30))
    print(
        f"| {recipe.name} | {label} | {sqnr:.1f} | {worst.cosine:.5f} | {_quantized(onnx)} | "
        f"{seconds:.0f} |",
        flush=True,
    )
    return sqnr


def _quantized(onnx: Path) -> str:
    """Operators that read a DequantizeLinear, by type."""
    graph = onnx_files.read(onnx).graph
    made = {
        name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output
    }
    counts = Counter(
        node.op_type
        for node in graph.node
        if not made.isdisjoint(node.input) and node.op_type != "QuantizeLinear"
    )
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def _versions(python: Path) -> str:
    code = (
        "from importlib.metadata import version;"
        "names = ('nvidia-modelopt', 'onnx', 'onnxruntime-gpu');"
        "print(', '.join(f'{name} {version(name)}' for name in names))"
    )
    return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(0 if all(figure.met for figure in main()) else 1)
