"""Our figures against a real trtexec of TensorRT 8.6, on the very same plan, in turns.

ENGINEFARM_TRTEXEC names the program (default /opt/trtexec86/trtexec); without it this is not run.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import builds
import numpy as np
import pytest
from small_models import convolutions

from enginefarm.bench.harness import Harness, interleave
from enginefarm.building import isolate
from enginefarm.run.artifacts import open_artifact
from enginefarm.toolchains import trtexec

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(500)]

TRTEXEC = Path(os.environ.get("ENGINEFARM_TRTEXEC", "/opt/trtexec86/trtexec"))
LAYERS, CHANNELS, ROUNDS = 24, 256, 3
WITHIN = 0.02
EVENT_MS = 0.002
"""Copies of a few microseconds: what two events of one GPU are apart, read twice."""
QUICK = Harness(min_iterations=300, min_seconds=1.0)


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
    onnx = convolutions(folder / "conv.onnx", layers=LAYERS, channels=CHANNELS)
    asked = builds.request(onnx, folder / "w", builds.CONV, precision="fp16")
    return isolate.build(asked, toolchain="tensorrt").plan


def theirs(plan: Path, batch: int, graph: bool, folder: Path) -> Parts:
    times = folder / "times.json"
    line = [
        *(str(TRTEXEC), f"--loadEngine={plan}", f"--shapes=x:{batch}x3x16x16", "--duration=2"),
        *("--warmUp=500", "--iterations=300", f"--exportTimes={times}"),
        *(["--useCudaGraph"] if graph else []),
    ]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
    said = done.stdout + done.stderr
    report = trtexec.parse_log(said)
    assert report.passed, said[-2000:]
    kept = os.environ.get("ENGINEFARM_GPU_KEEP")
    if kept and batch == 1 and not graph:
        (Path(kept) / "trtexec_86_inference.log").write_text(said)
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


def ours(plan: Path, batch: int, graph: bool) -> Parts:
    feeds: dict[str, Any] = {"x": np.ones((batch, 3, 16, 16), np.float32)}
    with open_artifact(plan, toolchain="tensorrt") as artifact:
        running = artifact.running("ours", cuda_graph=graph)
        try:
            running.bind(feeds)
            samples, _ = interleave([running], QUICK)
        finally:
            running.close()
    columns = [*zip(*samples[0].iterations, strict=True)]
    total, h2d, compute, d2h = (median(column) for column in columns)
    return Parts(h2d, compute, d2h, total)


@pytest.mark.parametrize("graph", [False, True], ids=["no-graph", "graph"])
@pytest.mark.parametrize("batch", [1, 8, 32])
def test_compute_and_copies_are_as_trtexec_says(
    plan: Path,
    tmp_path: Path,
    batch: int,
    graph: bool,
    record_property: Any,
) -> None:
    rounds = [
        (ours(plan, batch, graph), theirs(plan, batch, graph, tmp_path)) for _ in range(ROUNDS)
    ]
    mine, other = (
        Parts(*(median(column) for column in zip(*side, strict=True)))
        for side in zip(*rounds, strict=True)
    )
    ratio = mine.compute / other.compute
    print(
        f"| {batch} | {'yes' if graph else 'no'} | {mine.compute:.4f} | {other.compute:.4f} "
        f"| {ratio:.4f} | {mine.h2d:.4f} | {other.h2d:.4f} | {mine.d2h:.4f} | {other.d2h:.4f} "
        f"| {mine.total:.4f} | {other.total:.4f} |"
    )
    record_property("ratio", ratio)
    assert abs(ratio - 1) <= WITHIN
    for part in ("h2d", "d2h"):
        a, b = getattr(mine, part), getattr(other, part)
        assert abs(a - b) <= max(WITHIN * b, EVENT_MS), (part, a, b)
