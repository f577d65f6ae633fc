"""Collects real latencies on a machine with a GPU: one fresh process a session, as JSON.

    python3 benchmarks/collect_gpu_timings.py --sessions 60 OUT.json

ResNet-50 in PyTorch (FP16, random weights: they do not change the time), batch 8, as one CUDA
graph and eagerly, timed on the host's clock from before the copy in to after the copy out; and
EfficientNet-Lite0 in ONNX Runtime on that machine's CPU. `--to-parquet` turns the JSON into what
`benchmarks/regression.py` reads.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ITERATIONS = 120
WARMUP_S = 0.5


def eager(_: str) -> list[float]:
    """PyTorch eager: most of the time goes into launching kernels from the CPU."""
    import torch

    net, batch = _resnet()

    def once() -> None:
        net(batch.cuda(non_blocking=True)).cpu()

    with torch.inference_mode():
        return _timed(once)


def graph(_: str) -> list[float]:
    """One CUDA graph: the GPU is what takes the time, as with an engine."""
    import torch

    net, batch = _resnet()
    with torch.inference_mode():
        here = batch.cuda()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _warm in range(3):
                net(here)
        torch.cuda.synchronize()
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            found = net(here)

        def once() -> None:
            here.copy_(batch, non_blocking=True)
            captured.replay()
            found.cpu()

        return _timed(once)


def _resnet() -> tuple[Any, Any]:
    import torch
    import torchvision

    net = torchvision.models.resnet50(weights=None).eval().half().cuda()
    batch = torch.randn(8, 3, 224, 224).half().pin_memory()
    return net.to(memory_format=torch.channels_last), batch.contiguous(
        memory_format=torch.channels_last
    )


def _timed(once: Callable[[], None]) -> list[float]:
    """Milliseconds of each pass, after WARMUP_S: the clocks need that long to rise."""
    end = time.perf_counter() + WARMUP_S
    while time.perf_counter() < end:
        once()
    times: list[float] = []
    for _ in range(ITERATIONS):
        start = time.perf_counter_ns()
        once()
        times.append((time.perf_counter_ns() - start) / 1e6)
    return times


def ort_session(path: str) -> list[float]:
    import numpy as np
    import onnxruntime as ort

    net = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {i.name: np.zeros(i.shape, dtype=np.float32) for i in net.get_inputs()}
    run: Any = net.run
    return _timed(lambda: run(None, feed))


SESSIONS = {
    "resnet50-cuda-graph": graph,
    "resnet50-eager": eager,
    "efficientnet-lite0-ort": ort_session,
}


def collect(models: list[str], onnx: str, sessions: int, at_most_s: float) -> dict[str, Any]:
    import onnxruntime
    import torch

    # The server imports the libraries once; each session is a fork with a CUDA context of its own.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision", "onnxruntime", "numpy"])
    rows: list[dict[str, Any]] = []
    deadline = time.monotonic() + at_most_s
    for index in range(sessions):
        for model in models:
            started = datetime.now(UTC).isoformat()
            with context.Pool(1) as pool:
                times = pool.apply(SESSIONS[model], (onnx,))
            rows.append(
                {
                    "session": index,
                    "started_at": started,
                    "model": model,
                    "latency_ms": [round(value, 4) for value in times],
                }
            )
        if time.monotonic() > deadline:
            break
    return {
        "provenance": {
            "command": f"python3 benchmarks/collect_gpu_timings.py --sessions {sessions}",
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "cpus": os.cpu_count(),
            "os": platform.platform(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "warmup_s": WARMUP_S,
            "iterations": ITERATIONS,
            "note": "a machine of its own: nothing else ran",
        },
        "rows": rows,
    }


def to_parquet(source: Path, dest: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = json.loads(source.read_text())
    rows = [
        {**row, "started_at": datetime.fromisoformat(row["started_at"]), "latency_ms": value}
        for row in found["rows"]
        for value in row["latency_ms"]
    ]
    table = pa.Table.from_pylist(
        rows,
        schema=pa.schema(
            {
                "session": pa.int64(),
                "started_at": pa.timestamp("us", "UTC"),
                "model": pa.string(),
                "latency_ms": pa.float32(),
            },
            {"provenance": json.dumps(found["provenance"])},
        ),
    )
    pq.write_table(table, dest, compression="zstd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sessions", type=int, default=60)
    parser.add_argument("--models", nargs="+", choices=SESSIONS, default=list(SESSIONS)[:2])
    parser.add_argument("--at-most-s", type=float, default=600)
    parser.add_argument("--onnx", default="")
    parser.add_argument("--to-parquet", type=Path, help="Convert OUT to this file.")
    args = parser.parse_args()
    if args.to_parquet:
        to_parquet(args.out, args.to_parquet)
        return
    args.out.write_text(json.dumps(collect(args.models, args.onnx, args.sessions, args.at_most_s)))


if __name__ == "__main__":
    main()
