"""What a person sees while steps run: one line a step, bytes where bytes move."""

from __future__ import annotations

import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from enginefarm.cli.screen import drawable, plain
from enginefarm.progress import SINK

MOVES_BYTES = ("upload", "download")


class View:
    """A progress sink: keeps one line for each step that has been heard of."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lines: dict[str, TaskID] = {}
        self._lock = threading.Lock()

    def __call__(self, step: str, done: float, total: float | None, note: str = "") -> None:
        step, note = plain(step), plain(note)
        with self._lock:
            name = step
            if step.startswith(MOVES_BYTES):
                # Several blobs move in parallel; the note is the digest of each.
                name = f"{step} {note[:12]}"
                note = f"{done / 1e6:,.1f} of {(total or 0) / 1e6:,.1f} MB"
            line = self._lines.get(name)
            if line is None:
                line = self._progress.add_task(name, total=total, note="")
                self._lines[name] = line
            self._progress.update(line, completed=done, total=total, note=note)
            if total is not None and done >= total:
                self._progress.stop_task(line)


@contextmanager
def watched(*, enabled: bool = True) -> Generator[None]:
    """Shows progress on standard error while the block runs.

    Where standard error is not a terminal, each step is one plain line when it has ended.
    """
    if not enabled:
        yield
        return
    console = Console(file=drawable(sys.stderr))
    progress = Progress(
        SpinnerColumn(finished_text="[green]✓[/]"),
        TextColumn("{task.description}", markup=False),  # keys and names are not ours
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
        console=console,
    )
    with progress if console.is_terminal else nullcontext():
        token = SINK.set(View(progress) if console.is_terminal else Lines())
        try:
            yield
        finally:
            SINK.reset(token)


class Lines:
    """A progress sink for a log: each step is one line, when it ends for the first time. A step
    that is asked for again, for another GPU, prints no second line."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, step: str, done: float, total: float | None, note: str = "") -> None:
        if total is None or done < total:
            return
        told = step
        if step.startswith(MOVES_BYTES):
            told = f"{step} {note[:12]}"
            note = f"{total / 1e6:,.1f} MB"
        with self._lock:
            if told in self._told:
                return
            self._told.add(told)
            print(f"  {told} {note or 'done'}", file=sys.stderr, flush=True)
