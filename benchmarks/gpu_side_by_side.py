"""The same model in several runtimes, timed in turns in one run, as a Markdown table.

    python benchmarks/gpu_side_by_side.py --models FOLDER --plans FOLDER [--json OUT]

FOLDER of models: `NAME.onnx` and `NAME.npz` by tests/gpu/make_models.py. FOLDER of plans:
`NAME-PRECISION.plan`. Runtimes that this machine lacks are left out, by name. PyTorch and ONNX
Runtime run in processes of their own, where ENGINEFARM_TORCH_PYTHON (and _PYTHONPATH) and
ENGINEFARM_ORT_PYTHONPATH say: they seldom share one environment with TensorRT.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "gpu")]

from enginefarm.bench.engine import Measurement, side_by_side  # noqa: E402
from enginefarm.bench.harness import Harness  # noqa: E402
from enginefarm.errors import EnginefarmError  # noqa: E402
from enginefarm.graph.samples.feeds import shaped  # noqa: E402
from enginefarm.graph.verification.reference import read_reference  # noqa: E402
from enginefarm.names import RuntimeName  # noqa: E402
from enginefarm.run.contenders import (  # noqa: E402
    EngineContender,
    on_provider_in_a_process,
)
from enginefarm.run.engine import Engine  # noqa: E402
from enginefarm.run.remote import RemoteContender  # noqa: E402

MODELS = ("efficientnet_lite0", "resnet50")

TENSORRT_OPTIONS = {
    "trt_profile_min_shapes": "images:1x3x224x224",
    "trt_profile_opt_shapes": "images:8x3x224x224",
    "trt_profile_max_shapes": "images:32x3x224x224",
    "trt_builder_optimization_level": os.environ.get("ENGINEFARM_GPU_OPTIMIZATION", "3"),
    "trt_tactic_sources": "+EDGE_MASK_CONVOLUTIONS,+JIT_CONVOLUTIONS",
}
"""The same as the engines beside it were built with."""

HEADER = (
    "| runtime | batch | median ms | p99 ms | CoV | verdict | GPU compute ms | copies ms "
    "| samples/s | × first | cosine to first |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def contenders(
    name: str, models: Path, plans: Path | None, stack: ExitStack
) -> Iterator[tuple[str, Any]]:
    """(label, a callable that makes the contender); what is missing raises when it is made."""
    python = os.environ.get("ENGINEFARM_TORCH_PYTHON", sys.executable)
    path = os.environ.get("ENGINEFARM_TORCH_PYTHONPATH", os.pathsep.join(sys.path[:3]))
    device = os.environ.get("ENGINEFARM_TORCH_DEVICE", "cuda" if plans else "cpu")
    yield (
        "PyTorch",
        lambda: RemoteContender(
            f"PyTorch eager FP32, {device}",
            runtime="pytorch",
            python=[python],
            factory="make_models:torch_contender",
            arguments=[name, device],
            environment={"PYTHONPATH": path, "LD_LIBRARY_PATH": ""},
        ),
    )

    def ort(label: str, runtime: RuntimeName, **provider_options: str) -> Any:
        return lambda: on_provider_in_a_process(
            label,
            models / f"{name}.onnx",
            runtime=runtime,
            options=provider_options,
            environment={"PYTHONPATH": ort_path},
        )

    ort_path = os.pathsep.join(
        filter(None, (os.environ.get("ENGINEFARM_ORT_PYTHONPATH"), str(ROOT)))
    )
    yield "ORT CUDA", ort("ORT CUDA EP FP32", "onnxruntime-cuda")
    for precision, allowed in (("FP32", {}), ("FP16", {"trt_fp16_enable": "True"})):
        label = f"ORT TensorRT EP {precision}"
        yield label, ort(label, "onnxruntime-tensorrt", **TENSORRT_OPTIONS, **allowed)
    if plans is None:  # beside a GPU its threads, which wait by spinning, disturb the others
        yield "ORT CPU", ort("ORT CPU EP", "onnxruntime-cpu")
        return
    for plan in sorted(plans.glob(f"{name}-*.plan")):
        for graph in (False, True):
            engine = stack.enter_context(Engine(plan, toolchain="tensorrt"))
            label = f"TensorRT {plan.stem.rpartition('-')[2]}{' + CUDA graph' if graph else ''}"
            yield (
                label,
                lambda e=engine, la=label, g=graph: EngineContender(
                    la, e, runtime="tensorrt", profile=0, cuda_graph=g
                ),
            )


def available(name: str, models: Path, plans: Path | None, stack: ExitStack) -> list[Any]:
    found = []
    for label, make in contenders(name, models, plans, stack):
        try:
            made = make()
            found.append(made)
            if hasattr(made, "close"):
                stack.callback(made.close)
        except EnginefarmError as error:
            print(f"left out: {label}: {error.what}")
    return found


def line(one: Measurement, first: Measurement, batch: int) -> str:
    compute = f"{one.compute.ms_median:.3f}" if one.compute else "-"
    copies = (
        f"{one.copy_in.ms_median + one.copy_out.ms_median:.3f}"
        if one.copy_in and one.copy_out
        else "-"
    )
    total = one.total
    return (
        f"| {one.name} | {batch} | {total.ms_median:.3f} | {total.ms_p99:.3f} | {total.cov:.3f} "
        f"| {total.verdict} | {compute} | {copies} | {one.samples_per_s:.0f} "
        f"| {first.total.ms_median / total.ms_median:.2f} "
        f"| {min(o.cosine for o in one.against_first):.6f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--plans", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--model", action="append", help=f"of {', '.join(MODELS)}; all by default")
    options = parser.parse_args()
    plans = options.plans if importlib.util.find_spec("pycuda") else None
    harness = Harness(min_seconds=options.seconds, min_iterations=100, warmup_s=0.3)
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {platform.machine()}, {harness.flags}")
    results: list[dict[str, Any]] = []
    states: list[str] = []
    for name in options.model or MODELS:
        if not (options.models / f"{name}.npz").exists():
            continue
        with ExitStack() as stack:
            running = available(name, options.models, plans, stack)
            inputs = next(read_reference(options.models / f"{name}.npz")).inputs
            print(f"\n### {name}\n{HEADER}", flush=True)
            for batch in options.batches:
                feeds = shaped(inputs, {"images": (batch, 3, 224, 224)})
                found = side_by_side(running, feeds, batch=batch, harness=harness)
                for one in found:
                    print(line(one, found[0], batch), flush=True)
                    results.append({"model": name, "batch": batch, **one.model_dump(mode="json")})
                states.append(f"batch {batch}: {found[0].gpu.model_dump_json()}")
            print("", *states, sep="\n")
    if options.json:
        options.json.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
