"""Our figures against a real trtexec of TensorRT 8.6, on the very same plan and data, in turns.

ENGINEFARM_TRTEXEC names the program (default /opt/trtexec86/trtexec); without it this is not run.
ENGINEFARM_TRTEXEC_PLAN names a plan that is built already; without it one is built.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import builds
import numpy as np
import pytest
from small_models import convolutions

from enginefarm.building import isolate
from enginefarm.toolchains import trtexec

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(500)]

HERE = Path(__file__).parent
TRTEXEC = Path(os.environ.get("ENGINEFARM_TRTEXEC", "/opt/trtexec86/trtexec"))
LAYERS, CHANNELS, ROUNDS = 24, 256, int(os.environ.get("ENGINEFARM_TRTEXEC_ROUNDS", "3"))
BATCHES = (1, 8, 32)
WITHIN = 0.02
EVENT_MS = 0.002
"""Copies of a few microseconds: what two events of one GPU are apart, read twice."""


class Parts(NamedTuple):
    h2d: float
    compute: float
    d2h: float
    total: float


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not TRTEXEC.is_file():
        pytest.skip(f"not run: there is no {TRTEXEC}; tests/gpu/README.md says how to build it")
    folder = tmp_path_factory.mktemp("trtexec")
    if given := os.environ.get("ENGINEFARM_TRTEXEC_PLAN"):
        return Path(shutil.copy(given, folder / "engine.plan"))
    onnx = convolutions(folder / "conv.onnx", layers=LAYERS, channels=CHANNELS)
    asked = builds.request(onnx, folder / "w", builds.CONV, precision="fp16")
    return isolate.build(asked, toolchain="tensorrt").plan


Figures = dict[tuple[int, bool], list[Parts]]


@pytest.fixture(scope="module")
def figures(plan: Path) -> tuple[Figures, Figures]:
    """Ours and trtexec's by batch and CUDA graph, a round each: fresh processes, in turns."""
    x = np.random.default_rng(0).standard_normal((max(BATCHES), 3, 16, 16)).astype(np.float32)
    np.savez(plan.with_name("inputs.npz"), x=x)
    mine: Figures = {}
    other: Figures = {}
    for index in range(ROUNDS):
        for batch, graph, total, h2d, compute, d2h in ours(plan):
            mine.setdefault((batch, graph), []).append(Parts(h2d, compute, d2h, total))
        for batch in BATCHES:
            data = plan.with_name(f"x{batch}.bin")
            x[:batch].tofile(data)
            for graph in (False, True):
                found = theirs(plan, batch, graph, data, keep=index == 0)
                other.setdefault((batch, graph), []).append(found)
    return mine, other


def ours(plan: Path) -> Any:
    line = [HERE / "our_parts.py", plan, plan.with_name("inputs.npz"), *BATCHES]
    done = subprocess.run(
        [sys.executable, *map(str, line)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def theirs(plan: Path, batch: int, graph: bool, data: Path, *, keep: bool) -> Parts:
    times = plan.with_name("times.json")
    line = [
        *(str(TRTEXEC), f"--loadEngine={plan}", f"--shapes=x:{batch}x3x16x16", "--duration=1"),
        *("--warmUp=300", "--iterations=300", f"--exportTimes={times}", f"--loadInputs=x:{data}"),
        *(["--useCudaGraph"] if graph else []),
    ]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
    said = done.stdout + done.stderr
    report = trtexec.parse_log(said)
    assert report.passed, said[-2000:]
    kept = os.environ.get("ENGINEFARM_GPU_KEEP")
    if kept and keep:
        name = f"trtexec_86_batch{batch}{'_graph' if graph else ''}"
        (Path(kept) / f"{name}.log").write_text(said)
    rows = json.loads(times.read_bytes())
    assert median(row["computeMs"] for row in rows) == pytest.approx(
        report.compute_ms["median"], rel=0.01
    ), "the log and the exported times say the same"
    return Parts(
        report.h2d_ms["median"],
        report.compute_ms["median"],
        report.d2h_ms["median"],
        report.latency_ms["median"],
    )


@pytest.mark.parametrize("graph", [False, True], ids=["no-graph", "graph"])
@pytest.mark.parametrize("batch", BATCHES)
def test_compute_and_copies_are_as_trtexec_says(
    figures: tuple[Figures, Figures], batch: int, graph: bool, record_property: Any
) -> None:
    rounds = [side[batch, graph] for side in figures]
    mine, other = (Parts(*map(median, zip(*side, strict=True))) for side in rounds)
    spread = [[f"{one.compute:.4f}" for one in side] for side in rounds]
    ratio = mine.compute / other.compute
    print(
        f"| {batch} | {'yes' if graph else 'no'} | {mine.compute:.4f} | {other.compute:.4f} "
        f"| {ratio:.4f} | {mine.h2d:.4f} | {other.h2d:.4f} | {mine.d2h:.4f} | {other.d2h:.4f} "
        f"| {mine.total:.4f} | {other.total:.4f} | {spread}"
    )
    record_property("ratio", ratio)
    assert abs(ratio - 1) <= WITHIN
    for part in ("h2d", "d2h"):
        a, b = getattr(mine, part), getattr(other, part)
        assert abs(a - b) <= max(WITHIN * b, EVENT_MS), (part, a, b)
