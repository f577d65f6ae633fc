"""Builds recipes (make_zoo.py) and times each engine beside ONNX Runtime, as one Markdown table:

    python tests/gpu/beside_ort.py FOLDER NAME …

FOLDER/NAME/recipe.yaml is built by `enginefarm build` and timed by `enginefarm bench run`, which
finds ONNX Runtime for GPUs where ENGINEFARM_ORT_PYTHONPATH says. Whatever was left out is printed
above the table. The relative L2 of ONNX Runtime is measured against the first row of its batch;
that of an engine is what its manifest says (`graph`: of its graph on the CPU).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-c", "from enginefarm.cli import main; main()"]
SECONDS = os.environ.get("ENGINEFARM_GPU_SECONDS", "1")
HEADER = (
    "| model | batch | precision | runtime | CUDA graph | median ms | p99 ms | verdict "
    "| GPU compute ms | × ONNX Runtime CUDA of that precision | relative L2 |"
)


def enginefarm(folder: Path, *arguments: str, **environment: str) -> str:
    """Raises: SystemExit where the command fails."""
    own = {"ENGINEFARM_HOME": str(folder / "home"), "ENGINEFARM_CACHE": str(folder / "cache")}
    started = time.monotonic()
    done = subprocess.run(
        [*COMMAND, *arguments],
        env={**os.environ, **own, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    print(f"{arguments[0]}: exit {done.returncode}, {time.monotonic() - started:.0f} s", flush=True)
    if done.returncode:
        raise SystemExit(done.stdout)
    return done.stdout


def table(name: str, rows: list[dict[str, Any]]) -> list[str]:
    beside = {
        (row["precision"], row["batch"]): row["latency_ms_median"]
        for row in rows
        if row["runtime"] == "onnxruntime-cuda"
    }
    lines = []
    for row in sorted(rows, key=lambda one: (one["batch"], one["precision"], one["runtime"])):
        median, first = row["latency_ms_median"], beside.get((row["precision"], row["batch"]))
        lines.append(
            f"| {name} | {row['batch']} | {row['precision']} | {row['runtime']} "
            f"| {'yes' if row['cuda_graph'] else 'no'} | {median:.3f} "
            f"| {row['latency_ms_p99']:.3f} | {row['cov_verdict']} "
            f"| {number(row['compute_ms_median'], '.3f')} "
            f"| {number(first and first / median, '.2f')} "
            f"| {number(row['relative_l2_max'], '.2g')} {row['verified_on'] or ''} |"
        )
    return lines


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def main(folder: Path, names: list[str]) -> None:
    found: list[str] = []
    with_ort = os.pathsep.join(
        filter(None, (os.environ.get("ENGINEFARM_ORT_PYTHONPATH"), os.environ.get("PYTHONPATH")))
    )
    for name in names:
        recipe = str(folder / name / "recipe.yaml")
        print(enginefarm(folder / name, "build", recipe), flush=True)
        said = enginefarm(
            folder / name,
            *("bench", "run", recipe, "--seconds", SECONDS, "--json"),
            PYTHONPATH=with_ort,
        )
        (folder / name / "rows.json").write_text(said)
        found += table(name, json.loads(said))
    print("", HEADER, "|---" * (HEADER.count("|") - 1) + "|", *found, sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
