"""The two commands of the README from a clean clone: seconds of each, as a newcomer waits.

    python -m benchmarks.fresh_machine [--tests]

Clones HEAD into an empty folder with an empty home and no pip cache, and runs `make demo`
(which installs first), `make demo` again, and with --tests `make test`. What the package
index and the machine already hold (a browser, PostgreSQL) is as it is here.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine
from benchmarks.figures import Figure
from enginefarm.store import embedded

ROOT = Path(__file__).parents[1]


def main(arguments: Sequence[str] | None = None) -> list[Figure]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tests", action="store_true", help="`make test` too")
    chosen = parser.parse_args(arguments)
    print(f"{machine.described()}\n\n| command | s |\n|---|---:|")
    with tempfile.TemporaryDirectory(prefix="enginefarm-fresh-") as folder:
        clone, home = Path(folder) / "enginefarm", Path(folder) / "home"
        home.mkdir()
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        try:
            figures = [
                _timed("make install", clone, home),
                _timed("make demo", clone, home),
                _timed("make demo", clone, home, again="again, all cached"),
            ]
            if chosen.tests:
                figures.append(_timed("make test", clone, home))
        finally:
            embedded.stop(home / "farm" / "store")
    return figures


def _timed(command: str, clone: Path, home: Path, again: str = "") -> Figure:
    environment = {
        **{k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")},
        "ENGINEFARM_HOME": str(home / "farm"),
        "ENGINEFARM_CACHE": str(home / "cache"),
        "PIP_NO_CACHE_DIR": "1",
        "PYTHON": sys.executable,
    }
    name = f"{command}, {again}" if again else command
    started = time.monotonic()
    done = subprocess.run(
        command.split(), cwd=clone, env=environment, capture_output=True, text=True, check=False
    )
    seconds = time.monotonic() - started
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
        raise SystemExit(f"{command} ended with status {done.returncode}")
    print(f"| `{name}` | {seconds:.0f} |", flush=True)
    return Figure(name, seconds, "s")


if __name__ == "__main__":
    main()
