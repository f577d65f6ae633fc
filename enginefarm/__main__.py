"""Where the command `enginefarm` begins; `python -m enginefarm` is the same."""

from __future__ import annotations

import sys

INTERRUPTED = 130
"""The exit code of a command that Ctrl-C, SIGTERM or a closed terminal ended."""


def main() -> None:
    """Ctrl-C while the command line is still loaded is no traceback either."""
    try:
        from enginefarm.cli import main as command
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    command()


if __name__ == "__main__":
    main()
