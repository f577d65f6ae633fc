"""Ctrl-C, `kill` or a scheduler's stop, and a terminal that is closed end a command in one way:
its children are killed, what it has half written is removed, and it says one line.
"""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import suppress

from enginefarm.__main__ import INTERRUPTED
from enginefarm.child.cancellation import CANCEL
from enginefarm.cli.screen import Screen

ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ASKED = threading.Event()
"""Whether somebody ended this command. `CANCEL` is also set by a failure that stops what runs
beside it."""


def install() -> None:
    """From now on they raise KeyboardInterrupt."""
    for number in ENDS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, and a shell's background
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: object) -> None:
    ASKED.set()
    CANCEL.set()
    quiet(True)  # libraries print the traceback of an interrupt that they cannot raise
    raise KeyboardInterrupt


def quiet(on: bool) -> None:
    """Whether standard error takes nothing more."""
    if isinstance(sys.stderr, Screen):
        sys.stderr.quiet = on


def report_interrupt() -> int:
    """The one line; returns the exit code."""
    for number in ENDS:
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, signal.SIG_DFL)  # once more on the way out: no traceback
    quiet(False)
    with suppress(OSError):  # a terminal that was closed
        print("interrupted", file=sys.stderr)
    return INTERRUPTED
