"""Where the command `enginefarm` begins; `python -m enginefarm` is the same."""

from __future__ import annotations

import os
import sys

INTERRUPTED = 130
"""The exit code of a command that Ctrl-C, SIGTERM or a closed terminal ended."""


def main() -> None:
    """Runs the command line. Ctrl-C while it is still being loaded prints no traceback either."""
    _open_what_is_closed()
    try:
        from enginefarm.cli import main as command
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    command()


def _open_what_is_closed() -> None:
    """A standard stream that whoever started us has closed (`>&-`) goes nowhere. Left closed, its
    number would be that of the next file that is opened, and what is printed would go into it."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # the lowest that is free: the stream's own
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8"))


if __name__ == "__main__":
    main()
