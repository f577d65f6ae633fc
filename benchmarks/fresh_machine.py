"""The two commands of the README from a clean clone: minutes and bytes, as a newcomer waits.

    python -m benchmarks.fresh_machine [--tests]
    python -m benchmarks.fresh_machine --bare bookworm --root FOLDER [--tests]

Clones HEAD into an empty folder with an empty home and no pip cache, and runs `make demo`
(which installs first), `make demo` again, and with --tests `make test`. With --bare, all of it
happens inside a root that debootstrap makes: a new machine with python3, git and make.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import bare_root, machine
from benchmarks.figures import Figure
from enginefarm.store import embedded

ROOT = Path(__file__).parents[1]


def main(arguments: Sequence[str] | None = None) -> list[Figure]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tests", action="store_true", help="`make test` too")
    parser.add_argument("--bare", metavar="SUITE", help="in a bare root: bookworm, trixie, noble")
    parser.add_argument("--root", type=Path, help="where the bare root is, or will be, made")
    chosen = parser.parse_args(arguments)
    print(f"{machine.described()}\n\n| command | s | MB on disk |\n|---|---:|---:|")
    if chosen.bare is not None:
        if chosen.root is None:
            parser.error("--bare needs --root FOLDER")
        return _bare(chosen.root, chosen.bare, tests=chosen.tests)
    with tempfile.TemporaryDirectory(prefix="enginefarm-fresh-") as folder:
        return _here(Path(folder), tests=chosen.tests)


def _bare(root: Path, suite: str, *, tests: bool) -> list[Figure]:
    bare_root.make(root, suite)
    clone = root / "root" / "enginefarm"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)

    def run(command: str) -> int:
        line = f"cd /root/enginefarm && {command}"
        return bare_root.run(root, ["bash", "-c", line], TMPDIR="/var/tmp")

    return _commands(run, lambda: bare_root.used_bytes(root), tests=tests)


def _here(folder: Path, *, tests: bool) -> list[Figure]:
    clone, home = folder / "enginefarm", folder / "home"
    home.mkdir()
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    environment = {
        **{k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")},
        "ENGINEFARM_HOME": str(home / "farm"),
        "ENGINEFARM_CACHE": str(home / "cache"),
        "PIP_NO_CACHE_DIR": "1",
        "PYTHON": sys.executable,
    }

    def run(command: str) -> int:
        return subprocess.run(command.split(), cwd=clone, env=environment, check=False).returncode

    try:
        return _commands(run, lambda: bare_root.used_bytes(folder), tests=tests)
    finally:
        embedded.stop(home / "farm" / "store")


def _commands(run: Callable[[str], int], used: Callable[[], int], *, tests: bool) -> list[Figure]:
    figures: list[Figure] = []
    commands = [("make install", ""), ("make demo", ""), ("make demo", "again, all cached")]
    for command, again in [*commands, *([("make test", "")] if tests else [])]:
        before, started = used(), time.monotonic()
        status = run(command)
        seconds, added = time.monotonic() - started, used() - before
        if status:
            raise SystemExit(f"{command} ended with status {status}")
        name = f"{command}, {again}" if again else command
        print(f"| `{name}` | {seconds:.0f} | {added / 1e6:.0f} |", flush=True)
        figures += [Figure(name, seconds, "s"), Figure(f"{name}, on disk", added / 1e6, "MB")]
    return figures


if __name__ == "__main__":
    main()
