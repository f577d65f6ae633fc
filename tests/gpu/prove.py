"""Proves a machine: engines built, verified and timed on its GPU, and what tests/gpu found there.

    python tests/gpu/prove.py WORK          (tests/gpu/run.sh --prove WORK starts it)

For each precision that the GPU has, the product itself builds an engine of a real model, runs it
on the GPU in a fresh process against FP32, and times it; several GPUs of one kind share the
precisions, one at a time each. The result is a page,
docs/measurements/proof-GPU-RELEASE.md, and a row of enginefarm/documents/support.toml that names
the precisions that passed. Ends with 1 where something failed; the page says so too.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[2]
TOOLCHAIN = os.environ.get("ENGINEFARM_GPU_TOOLCHAIN", "tensorrt")
SUPPORT = Path("enginefarm/documents/support.toml")
PACKAGES = ("tensorrt", "tensorrt-bindings", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx")
OTHERS = ("pycuda", "onnxruntime", "onnxruntime-gpu", "onnx", "numpy")
COMMAND = [sys.executable, "-c", "from enginefarm.cli import main; main()"]


class Row(NamedTuple):
    """One precision. reason: why it is not proven; empty where it is."""

    precision: str
    reason: str = ""
    build_s: float = 0.0
    plan_bytes: int = 0
    cosine: float = 0.0
    relative_l2: float = 0.0
    timings: tuple[tuple[int, bool, float, float], ...] = ()
    """Batch, CUDA graph, median and p99 of the latency in ms."""


class RunResult(NamedTuple):
    """What pytest's junit files say. failed and not_run: name and first line of the reason."""

    passed: int
    failed: tuple[tuple[str, str], ...]
    not_run: tuple[tuple[str, str], ...]


class Machine(NamedTuple):
    label: str
    gpu: str
    driver: str
    host: str
    release: str
    packages: str
    commit: str


def recipe(models: Path, folder: Path, label: str, release: str) -> Path:
    """The recipe that is proven: EfficientNet-Lite0, as make_models.py exported it."""
    builder: dict[str, Any] = {
        "optimization_level": int(os.environ.get("ENGINEFARM_GPU_OPTIMIZATION", "3"))
    }
    if int(release.partition(".")[0]) < 10:  # its libraries come without cuBLAS and cuDNN
        builder["tactic_sources"] = ["EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"]
    written = {
        "name": "efficientnet-lite0",
        "source": {"kind": "onnx", "path": str(models / "efficientnet_lite0.onnx")},
        "inputs": [{"name": "images", "shape": ["batch", 3, 224, 224]}],
        "profiles": [{"dims": {"batch": [1, 8, 32]}}],
        "precisions": ["fp32"],
        "gpus": [label],
        "toolchain": TOOLCHAIN,
        "builder": builder,
        "calibration": {
            "data": {"path": str(models / "calibration.npz")},
            "method": "percentile",
            "percentile": 99.999,
            "batches": 8,
            "batch_size": 8,
        },
        "verification": {
            "data": {"path": str(models / "verification.npz")},
            "batches": 4,
            "batch_size": 8,
            "class_scores": ["scores"],
        },
        "accuracy": {
            "int8": {"min_cosine": 0.97, "max_relative_l2": 0.25},
            "fp8": {"min_cosine": 0.85, "max_relative_l2": 0.6},
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(written, sort_keys=False))
    return path


def proven(path: Path, precision: str) -> Row:
    """Builds, verifies on the GPU, times. Whatever fails is the row's reason."""
    from enginefarm.bench.engine import benchmark_engine
    from enginefarm.bench.harness import Harness
    from enginefarm.errors import EnginefarmError
    from enginefarm.recipes import file as recipe_file
    from enginefarm.run.verify import DeviceRequest, verify_on_device
    from enginefarm.store import site

    # One precision is one recipe: what fails in one says nothing of the others.
    own = path.with_name(f"recipe-{precision}.yaml")
    own.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "precisions": [precision]}))
    done = subprocess.run(
        [*COMMAND, "build", str(own), "--json"], capture_output=True, text=True, check=False
    )
    print(done.stdout, done.stderr, sep="\n", flush=True)
    if done.returncode:
        return Row(precision, f"not built: exit {done.returncode}: {last_words(done.stderr)}")
    loaded, here = recipe_file.load(own), site.here()
    found = [one for one in here.store.manifests(loaded.name) if one.precision == precision]
    manifest = max(found, key=lambda one: one.created_at)
    assert manifest.reference is not None
    try:
        plan = here.cache.ensure(here.store, manifest.engine)
        reference = here.cache.ensure(here.store, manifest.reference)
        asked = DeviceRequest(
            plan=plan,
            reference=reference,
            toolchain=TOOLCHAIN,
            profiles=manifest.spec.profiles,
            budget=loaded.budget(manifest.precision),
            comparing=manifest.verification.comparing,
        )
        with here.scratch() as scratch:
            device = verify_on_device(asked, scratch / "device").verification
        row = Row(
            precision,
            "" if device.status == "passed" else f"failed on the GPU: {device.reason}",
            manifest.build.seconds,
            manifest.engine.size_bytes,
            min((one.cosine for one in device.outputs), default=0.0),
            max((one.relative_l2 for one in device.outputs), default=0.0),
        )
        if row.reason:
            return row
        quick = Harness(min_seconds=float(os.environ.get("ENGINEFARM_GPU_SECONDS", "1")))
        rows = benchmark_engine(manifest, plan, reference, harness=quick)
    except EnginefarmError as error:
        return Row(precision, f"{type(error).__name__}: {error}")
    timings = tuple(
        (int(one.batch or 0), bool(one.cuda_graph), one.latency_ms_median, one.latency_ms_p99)
        for one in rows
    )
    return row._replace(timings=timings)  # type: ignore[arg-type]


def cards() -> list[str]:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")


def on_the_cards(do: Callable[[str], Any], items: Sequence[str]) -> list[Any]:
    """One item after another; with several GPUs, one on each at a time. In the order of items."""
    context = multiprocessing.get_context("spawn")
    free = context.Queue()
    for card in cards():
        free.put(card)
    with ProcessPoolExecutor(len(cards()), context, take_card, (free,)) as pool:
        return [*pool.map(do, items)]


def take_card(free: Any) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = free.get()


def last_words(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return " ".join(lines[-3:])[-300:]


def ran(files: Sequence[Path]) -> RunResult:
    """Sums up junit files. A test that was expected to fail counts as not run, and one that is in
    several files, as with and without ONNX Runtime for GPUs, as run where it ran."""
    passed, failed, not_run = 0, [], []
    did_run: set[str] = set()
    for file in files:
        for case in ET.parse(file).getroot().iter("testcase"):
            name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
            bad = next((one for one in case if one.tag in ("failure", "error")), None)
            skipped = case.find("skipped")
            if bad is not None:
                failed.append((name, _line(bad)))
            elif skipped is not None:
                not_run.append((name, _line(skipped)))
                continue
            else:
                passed += 1
            did_run.add(name)
    left = tuple(one for one in not_run if one[0] not in did_run)
    return RunResult(passed, tuple(failed), left)


def _line(element: ET.Element) -> str:
    return " ".join((element.get("message") or element.text or "").split())[:200]


def machine() -> Machine:
    """Raises: SystemExit on a machine without a GPU of gpus.toml, or without the toolchain."""
    from enginefarm.bench.recipe import host_class
    from enginefarm.documents.gpus import by_nvml_name
    from enginefarm.errors import EnginefarmError
    from enginefarm.host.detect import first_gpu
    from enginefarm.toolchains import toolchain

    gpu = first_gpu()
    row = by_nvml_name(gpu.name) if gpu else None
    if gpu is None or row is None:
        raise SystemExit(f"prove: no GPU of gpus.toml is found on this machine ({gpu})")
    try:
        release = toolchain(TOOLCHAIN).identity().build
    except EnginefarmError as error:
        raise SystemExit(f"prove: {error}") from None
    shared = (
        f"; {count} GPUs, one for each process at a time" if (count := len(cards())) > 1 else ""
    )
    return Machine(
        row.label,
        gpu.name,
        f"{gpu.driver} (CUDA {(gpu.driver_cuda or 0) / 1000:.1f})",
        f"{host_class()}, {platform.system()} {platform.release()}{shared}",
        release,
        ", ".join([f"Python {platform.python_version()}", *versions()]),
        os.environ.get("ENGINEFARM_COMMIT") or commit(),
    )


def commit() -> str:
    """Of this checkout; not known where there is no git, or a copy without its history."""
    if shutil.which("git") is None:
        return "not known"
    line = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(line, capture_output=True, text=True, check=False).stdout.strip() or (
        "not known"
    )


def versions() -> list[str]:
    found = []
    for name in (*PACKAGES, *OTHERS):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found


def page(where: Machine, rows: Sequence[Row], tests: RunResult, day: str) -> str:
    """The page: what was proven, what failed, and what did not run."""
    passed = [row.precision for row in rows if not row.reason]
    note = f" {told}." if (told := os.environ.get("ENGINEFARM_PROOF_NOTE")) else ""
    batches = sorted({batch for row in rows for batch, *_ in row.timings})
    lines = [
        f"# Proof: {where.label}, {TOOLCHAIN} {where.release}\n",
        f"Written by `tests/gpu/run.sh --prove`, {day}, commit {where.commit}.",
        f"{where.gpu}, driver {where.driver}; {where.host}. {where.packages}. "
        f"Clocks are not locked.{note}\n",
        f"Proven here: **{', '.join(passed) or 'nothing'}**. Each engine was built on this GPU, "
        "run on it in a fresh process against the FP32 model on the CPU, and timed.\n",
        "| precision | verdict | built in s | plan bytes | cosine | relative L2 |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        figures = (
            f"{row.build_s:.1f} | {row.plan_bytes:,} | {row.cosine:.6f} | {row.relative_l2:.4f}"
            if row.plan_bytes
            else "- | - | - | -"
        )
        lines.append(f"| {row.precision} | {row.reason or 'passed'} | {figures} |")
    if batches:
        lines += [
            "\nLatency in ms, median / p99, a lone pass on the host's clock:\n",
            "| precision | CUDA graph | " + " | ".join(f"batch {one}" for one in batches) + " |",
            "|---" * (2 + len(batches)) + "|",
        ]
    for row in rows:
        for graph in (False, True):
            cells = {
                b: f"{median:.3f} / {p99:.3f}" for b, g, median, p99 in row.timings if g is graph
            }
            if cells:
                values = " | ".join(cells.get(batch, "-") for batch in batches)
                lines.append(f"| {row.precision} | {'yes' if graph else 'no'} | {values} |")
    lines.append(
        f"\n## tests/gpu\n\n{tests.passed} passed, {len(tests.failed)} failed, "
        f"{len(tests.not_run)} not run."
    )
    for title, found in (("Failed", tests.failed), ("Not run", tests.not_run)):
        lines += [f"\n{title}:"] if found else []
        lines += [f"- `{name}`: {why}" for name, why in found]
    return "\n".join(lines) + "\n"


def with_row(
    text: str, toolchain: str, gpu: str, release: str, precisions: Sequence[str], name: str
) -> str:
    """support.toml with this proof in it, in place of an older one of that GPU and release."""
    header = f"[[{toolchain}.proven]]"
    block = re.compile(re.escape(header) + r"\n(?:[^\[\n][^\n]*\n)*")
    same = (f'gpu = "{gpu}"', f'release = "{release}"')

    def kept(found: re.Match[str]) -> str:
        return "" if all(line in found.group().splitlines() for line in same) else found.group()

    text = block.sub(kept, text).rstrip("\n") + "\n"
    listed = json.dumps([*precisions])
    page_line = f'page = "docs/measurements/{name}"'
    return text + "\n" + "\n".join([header, *same, f"precisions = {listed}", page_line]) + "\n"


def main(work: Path) -> int:
    from enginefarm.documents.gpus import gpu
    from enginefarm.store import embedded

    where = machine()
    folder = work / "proof"
    os.environ.update(ENGINEFARM_HOME=str(folder / "home"), ENGINEFARM_CACHE=str(folder / "cache"))
    models = Path(os.environ.get("ENGINEFARM_GPU_MODELS", work / "models")).resolve()
    path = recipe(models, folder, where.label, where.release)
    try:
        rows = on_the_cards(partial(proven, path), gpu(where.label).precisions)
    finally:
        embedded.stop(folder / "home")
    tests = ran(sorted(work.glob("junit-*.xml")))
    name = f"proof-{where.label}-{where.release}.md"
    day = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    written = page(where, rows, tests, day)
    (ROOT / "docs" / "measurements" / name).write_text(written, "utf-8")
    passed = [row.precision for row in rows if not row.reason]
    if passed:
        file = ROOT / SUPPORT
        text = file.read_text("utf-8")
        file.write_text(
            with_row(text, TOOLCHAIN, where.label, where.release, passed, name), "utf-8"
        )
    print(written)
    return 0 if passed and not tests.failed else 1


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
