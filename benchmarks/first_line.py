"""How long `enginefarm build` leaves a person in the dark: its first line, and its first step.

    python -m benchmarks.first_line [RECIPE] [--rounds 3]

Each round starts cold: an empty store, an empty cache, and no table of Prefect's kept. The command
runs in a pseudo-terminal of its own, so that it draws what a person sees, and is ended as soon as
the first step has been drawn.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pty
import re
import select
import signal
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine
from benchmarks.farm_vs_script import build_command, of_its_own
from benchmarks.figures import Figure

STEP = re.compile(r"\bexport\b")
COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
LIMIT_S = 120.0


def once(recipe: Path) -> tuple[float, float]:
    """Seconds to the first line, and to the first step."""
    with contextlib.ExitStack() as stack:
        environment = of_its_own(stack)
        parent, child = pty.openpty()
        stack.callback(os.close, parent)
        started = time.perf_counter()
        process = subprocess.Popen(
            build_command(recipe),
            env={**environment, "TERM": "xterm", "COLUMNS": "120"},
            stdin=child,
            stdout=child,
            stderr=child,
            start_new_session=True,
        )
        os.close(child)
        stack.callback(_end, process)
        return _watch(parent, started)


def _watch(parent: int, started: float) -> tuple[float, float]:
    """Raises: SystemExit when the command ends, or is silent, before its first step."""
    seen, first = "", 0.0
    while (now := time.perf_counter() - started) < LIMIT_S:
        if not select.select([parent], [], [], 0.01)[0]:
            continue
        try:
            seen += os.read(parent, 1 << 16).decode("utf-8", "replace")
        except OSError:
            break
        plain = COLOURS.sub("", seen)
        if not first and plain.strip():
            first = now
        if STEP.search(plain):
            return first, now
    raise SystemExit(f"no step was shown in {LIMIT_S:g} s:\n{seen[-2000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main(arguments: Sequence[str] | None = None) -> list[Figure]:
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path("examples/01_efficientnet_lite0/recipe.yaml")
    parser.add_argument("recipe", type=Path, nargs="?", default=default)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    print(machine.described("prefect", "torch"))
    rounds = [once(options.recipe) for _ in range(options.rounds)]
    lines, steps = zip(*rounds, strict=True)
    line_s, step_s = statistics.median(lines), statistics.median(steps)
    print(f"recipe {options.recipe}, cold, median of {options.rounds} rounds")
    print(f"first line {line_s:6.2f} s  (aim 1)   {', '.join(f'{one:.2f}' for one in lines)}")
    print(f"first step {step_s:6.2f} s  (aim 4)   {', '.join(f'{one:.2f}' for one in steps)}")
    return [
        Figure("first line of a cold build", line_s, "s", at_most=1),
        Figure("first step of a cold build", step_s, "s", at_most=4),
    ]


if __name__ == "__main__":
    main()
