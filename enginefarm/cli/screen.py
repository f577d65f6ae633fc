"""What reaches a terminal: text that others wrote (names, reasons, logs) moves no cursor, sets no
title, and does not run from right to left. Such characters are shown as escapes.
"""

from __future__ import annotations

import re
from typing import Any, TextIO

CONTROL = r"\x00-\x08\x0b-\x1f\x7f-\x9f"
TURNING = r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
"""Characters that change the direction of the text around them."""

UNSAFE = re.compile(f"[{CONTROL}{TURNING}]")
MOVING = re.compile(rf"(?!\x1b\[[0-9;]*m|\r\n)[{CONTROL}{TURNING}]")
"""UNSAFE but for colors, which tables and Prefect's logs have, and ends of lines of Windows."""
NOT_IN_JSON = re.compile(rf"[\x7f-\x9f{TURNING}]")
"""Of UNSAFE what json.dumps leaves as it is."""


def plain(text: str) -> str:
    """The text with its unsafe characters, colors too, as Python writes them: `\\x1b`."""
    return UNSAFE.sub(_escaped, text)


def plain_json(text: str) -> str:
    """A JSON document with the same values, none of whose characters is unsafe."""
    return NOT_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _escaped(found: re.Match[str]) -> str:
    return repr(found[0])[1:-1]


class Screen:
    """A text stream whose writes are made safe; everything else is the stream's own.

    Who draws by moving the cursor (a progress bar) writes to `stream` itself. quiet: nothing is
    written.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.quiet = False

    def write(self, text: str) -> int:
        if self.quiet:
            return len(text)
        return self.stream.write(MOVING.sub(_escaped, text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def drawable(stream: Any) -> TextIO:
    """The stream behind a Screen."""
    return stream.stream if isinstance(stream, Screen) else stream
