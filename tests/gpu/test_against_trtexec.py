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
import tiny_onnx
import trtexec_log

from enginefarm.bench.queued import QueuedAnswer, QueuedRequest, QueuedSettings
from enginefarm.building import isolate
from enginefarm.child.call import Child, Limits
from enginefarm.documents.spec import MinOptMax
from enginefarm.errors import EngineRunError
from enginefarm.toolchains import trtexec

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(500)]

HERE = Path(__file__).parent
TRTEXEC = Path(os.environ.get("ENGINEFARM_TRTEXEC", "/opt/trtexec86/trtexec"))
LAYERS, CHANNELS, ROUNDS = 24, 256, int(os.environ.get("ENGINEFARM_TRTEXEC_ROUNDS", "3"))
BATCHES = (1, 8, 32)
WITHIN = 0.02
EVENT_MS = 0.002
"""Copies of a few microseconds: what two events of one GPU are apart, read twice."""
WAKING_MS = 0.02
"""trtexec's small copy in finds what copies asleep, ours comes right behind another copy: its one
is up to this much longer (docs/decisions/0294)."""
MANY = 8192
"""A batch whose copies take longer than anything of that kind: 12 MB in, 33 MB out."""


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
    # A graph in FP16: layers that a graph computes in FP32 stay there (trt86_toolchain.py).
    onnx = tiny_onnx.convolutions(folder / "conv.onnx", layers=LAYERS, channels=CHANNELS)
    asked = builds.request(onnx, folder / "w", builds.CONV, precision="fp16")
    built = isolate.build(asked, toolchain="tensorrt")
    assert built.details["kept_in_fp32"] == 0, "an engine in FP16"
    return built.plan


Figures = dict[tuple[int, bool], list[Parts]]


@pytest.fixture(scope="module")
def figures(plan: Path) -> tuple[Figures, Figures]:
    """Ours and trtexec's by batch and CUDA graph, a round each: fresh processes, in turns."""
    x = np.random.default_rng(0).standard_normal((max(BATCHES), 3, 16, 16)).astype(np.float16)
    np.savez(plan.with_name("inputs.npz"), x=x)
    mine: Figures = {}
    other: Figures = {}
    for index in range(ROUNDS):
        for batch, graph, total, h2d, compute, d2h in ours(plan, *BATCHES):
            mine.setdefault((batch, graph), []).append(Parts(h2d, compute, d2h, total))
        for batch in BATCHES:
            data = plan.with_name(f"x{batch}.bin")
            x[:batch].tofile(data)
            for graph in (False, True):
                found = theirs(plan, batch, graph, data, keep=index == 0)
                other.setdefault((batch, graph), []).append(found)
    return mine, other


def ours(plan: Path, *batches: int) -> Any:
    line = [HERE / "our_parts.py", plan, plan.with_name("inputs.npz"), *batches]
    done = subprocess.run(
        [sys.executable, *map(str, line)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def theirs(
    plan: Path, batch: int, graph: bool, data: Path, *flags: str, keep: bool = False
) -> Parts:
    times = plan.with_name("times.json")
    line = [
        *(str(TRTEXEC), f"--loadEngine={plan}", f"--shapes=x:{batch}x3x16x16", "--duration=1"),
        *("--warmUp=300", "--iterations=300", f"--exportTimes={times}", f"--loadInputs=x:{data}"),
        *("--useSpinWait", *flags),  # as ours: an event that wakes a sleeping host takes longer
        *(["--useCudaGraph"] if graph else []),
    ]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
    said = done.stdout + done.stderr
    assert trtexec.parse_log(said).passed, said[-2000:]
    report = trtexec_log.medians(said)
    kept = os.environ.get("ENGINEFARM_GPU_KEEP")
    if kept and keep:
        name = f"trtexec_86_batch{batch}{'_graph' if graph else ''}"
        (Path(kept) / f"{name}.log").write_text(said)
    rows = json.loads(times.read_bytes())
    assert median(row["computeMs"] for row in rows) == pytest.approx(report.compute, rel=0.01), (
        "the log and the exported times say the same"
    )
    return Parts(report.h2d, report.compute, report.d2h, report.latency)


@pytest.mark.parametrize("batch", BATCHES)
def test_the_defaults_of_trtexec_11_measure_the_same(
    plan: Path, batch: int, record_property: Any
) -> None:
    """Its defaults are written out here for 8.6: CUDA graph, spin wait, no transfers."""
    x = np.random.default_rng(0).standard_normal((batch, 3, 16, 16)).astype(np.float16)
    reference = plan.with_name(f"reference{batch}.npz")
    arrays: dict[str, Any] = {"0000/input/x": x}
    np.savez(reference, **arrays)
    request = QueuedRequest(
        plan=plan,
        reference=reference,
        toolchain="tensorrt",
        shapes={"x": x.shape},
        settings=QueuedSettings(seconds=1.0),
    )
    child = Child(what="ours", error=EngineRunError, limits=Limits(120))
    line = [
        *(str(TRTEXEC), f"--loadEngine={plan}", f"--shapes=x:{batch}x3x16x16", "--duration=1"),
        *("--warmUp=200", "--useCudaGraph", "--useSpinWait", "--noDataTransfers"),
    ]
    mine: list[tuple[float, float]] = []
    other: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        found = child.ask("enginefarm.bench.queued:measure", request, QueuedAnswer)
        mine.append((median(found.compute_ms), len(found.compute_ms) / found.seconds))
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
        said = done.stdout + done.stderr
        assert trtexec.parse_log(said).passed, said[-2000:]
        report = trtexec_log.medians(said)
        other.append((report.compute, report.rate_qps))
    (compute, qps), (their_compute, their_qps) = (
        tuple(map(median, zip(*side, strict=True))) for side in (mine, other)
    )
    print(f"| {batch} | {compute:.4f} | {their_compute:.4f} | {qps:.0f} | {their_qps:.0f} |")
    record_property("ratio", compute / their_compute)
    assert compute == pytest.approx(their_compute, rel=WITHIN, abs=EVENT_MS)
    assert qps == pytest.approx(their_qps, rel=0.1)


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
    assert mine.d2h == pytest.approx(other.d2h, rel=WITHIN, abs=EVENT_MS)
    assert -WAKING_MS <= mine.h2d - other.h2d <= EVENT_MS, (mine.h2d, other.h2d)


def test_copies_of_megabytes_take_what_trtexec_says(plan: Path, tmp_path: Path) -> None:
    shapes = {"x": MinOptMax(min=(1, 3, 16, 16), opt=(MANY, 3, 16, 16), max=(MANY, 3, 16, 16))}
    onnx = tiny_onnx.convolutions(tmp_path / "conv.onnx")
    asked = builds.request(onnx, tmp_path / "w", shapes, precision="fp16")
    large = isolate.build(asked, toolchain="tensorrt").plan
    x = np.random.default_rng(0).standard_normal((MANY, 3, 16, 16)).astype(np.float16)
    np.savez(large.with_name("inputs.npz"), x=x)
    data = large.with_name("x.bin")
    x.tofile(data)
    rounds: list[list[Parts]] = [[], []]
    # --exposeDMA: one pass at a time, as ours; else copies in and out share the way to the host.
    for _ in range(ROUNDS):
        (_, _, total, h2d, compute, d2h), _ = ours(large, MANY)
        rounds[0].append(Parts(h2d, compute, d2h, total))
        rounds[1].append(theirs(large, MANY, False, data, "--exposeDMA"))
    mine, other = (Parts(*map(median, zip(*side, strict=True))) for side in rounds)
    print(
        f"| {MANY} | copy in {mine.h2d:.4f} / {other.h2d:.4f} | {mine.d2h:.4f} / {other.d2h:.4f} |"
    )
    assert mine.h2d == pytest.approx(other.h2d, rel=WITHIN)
    assert mine.d2h == pytest.approx(other.d2h, rel=WITHIN)
