"""What a person sees while steps run, on a terminal and in a log."""

from __future__ import annotations

import io
import sys

import pytest

from enginefarm.cli.progress_view import watched
from enginefarm.progress import report


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def steps() -> None:
    report("slim", 1, 2, "half")
    report("slim", 2, 2)
    report("upload", 1_500_000, 3_000_000, "0123456789abcdef")
    report("upload", 3_000_000, 3_000_000, "0123456789abcdef")
    report("upload", 1_000_000, 1_000_000, "fedcba9876543210")
    report("build", 12, None, "t4/fp16: starting")


def test_a_log_has_one_line_for_each_step_that_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with watched():
        steps()
    assert log.getvalue().splitlines() == [
        "  slim done",
        "  upload 0123456789ab 3.0 MB",
        "  upload fedcba987654 1.0 MB",
    ]


def test_a_log_tells_a_step_once_though_its_child_and_its_record_both_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with watched():
        report("slim", 2, 2)
        report("slim", 1, 1)
        report("slim", 1, 1, "cached")
        report("build l4/fp16", 100, 100, "tensorrt-rtx: plan written")
    assert log.getvalue().splitlines() == [
        "  slim done",
        "  build l4/fp16 tensorrt-rtx: plan written",
    ]


def test_a_terminal_has_a_line_for_each_step_and_each_blob(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with watched():
        steps()
    shown = terminal.getvalue().rpartition("slim")[2]
    assert "upload 0123456789ab" in shown
    assert "3.0 of 3.0 MB" in shown
    assert "upload fedcba987654" in shown
    assert "t4/fp16: starting" in shown


def test_switched_off_it_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with watched(enabled=False):
        steps()
    assert log.getvalue() == ""
