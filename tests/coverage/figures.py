"""Prints coverage of enginefarm/: of all of it, and without what only runs on a GPU.

    python tests/coverage/figures.py FOLDER

FOLDER is what run.sh filled. Coverage is (lines + branches taken) / (lines + branches).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

NEEDS_A_GPU = (
    "enginefarm/run/buffers.py",
    "enginefarm/run/cuda_graph.py",
    "enginefarm/run/session.py",
    "enginefarm/run/contenders.py",
    "enginefarm/bench/gpu_state.py",
    "enginefarm/run/engine.py",
    "enginefarm/toolchains/tensorrt.py",
)
"""Modules whose point is CUDA, or a builder that needs a GPU. `make test-gpu` runs them."""


SHOWN_BELOW = 95
"""Percent: modules that have more are not listed."""


def main() -> None:
    folder = Path(sys.argv[1])
    data, report = folder / "data", folder / "coverage.json"
    coverage = [sys.executable, "-m", "coverage"]
    settings = [f"--rcfile={folder / 'coveragerc'}", "-q"]
    subprocess.run([*coverage, "combine", "--keep", *settings], check=True)
    subprocess.run([*coverage, "json", *settings, f"--data-file={data}", "-o", report], check=True)
    files: dict[str, Any] = json.loads(report.read_text("utf-8"))["files"]
    print("| module | lines and branches | covered | missing lines |\n|---|---:|---:|---|")
    for name, found in sorted(files.items(), key=lambda item: share([item[1]])):
        missing = runs(found["missing_lines"])
        if size([found]) and share([found]) < SHOWN_BELOW:
            print(f"| {name} | {size([found])} | {share([found]):.0f} % | {missing} |")
    alone = {name: found for name, found in files.items() if name not in NEEDS_A_GPU}
    unknown = set(NEEDS_A_GPU) - files.keys()
    assert not unknown, f"no such module: {unknown}"
    print(f"\nenginefarm/: {share(files.values()):.1f} % of {size(files.values()):,}")
    print(
        f"without the {len(NEEDS_A_GPU)} modules that need a GPU: {share(alone.values()):.1f} % "
        f"of {size(alone.values()):,}"
    )


def size(files: Iterable[dict[str, Any]]) -> int:
    totals = [found["summary"] for found in files]
    return sum(one["num_statements"] + one["num_branches"] for one in totals)


def share(files: Iterable[dict[str, Any]]) -> float:
    totals = [found["summary"] for found in files]
    covered = sum(one["covered_lines"] + one["covered_branches"] for one in totals)
    return 100 * covered / (sum(one["num_statements"] + one["num_branches"] for one in totals) or 1)


def runs(lines: list[int]) -> str:
    """1, 2, 3, 7 as `1-3, 7`."""
    found: list[list[int]] = []
    for line in lines:
        if found and line == found[-1][-1] + 1:
            found[-1].append(line)
        else:
            found.append([line])
    return ", ".join(f"{one[0]}-{one[-1]}" if len(one) > 1 else str(one[0]) for one in found)


if __name__ == "__main__":
    main()
