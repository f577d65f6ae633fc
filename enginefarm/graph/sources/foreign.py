"""Files of other formats than a checkpoint's, told by their first bytes, and what to do instead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from enginefarm.errors import SourceError

AS_STATE_DICT = "load it in the framework that wrote it, and save it as a PyTorch state dict"
LONGEST_TEXT = 64 << 20
"""Bytes of the largest file that is read to see whether it is JSON."""


class Format(NamedTuple):
    magic: bytes
    name: str
    fix: str


FORMATS = (
    Format(b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes", AS_STATE_DICT),
    Format(
        b"GGUF",
        "a GGUF file, whose weights are quantized for llama.cpp",
        "use the checkpoint that it was made of",
    ),
    Format(b"\x1f\x8b", "a gzip archive", "unpack it, and name the file that comes out"),
    Format(b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it, and name the file that comes out"),
    Format(b"\x93NUMPY", "a NumPy array", AS_STATE_DICT),
    Format(
        b"\x08",
        "an ONNX file",
        "write it as `source: { kind: onnx, path: … }`, without a callable",
    ),
)
PAGE = (b"<!doctype", b"<html", b"<?xml")


def refuse(file: Path, *, field: str) -> None:
    """Raises: SourceError for a format of the table, a web page, or JSON."""
    with file.open("rb") as stream:
        head = stream.read(64)
    found = next((row for row in FORMATS if head.startswith(row.magic)), None)
    if found is not None and (len(found.magic) > 1 or file.suffix == ".onnx"):
        raise SourceError(f"{field}: {file.name}: this is {found.name}", fix=found.fix)
    if head.lstrip().lower().startswith(PAGE):
        raise SourceError(
            f"{field}: {file.name}: this is a web page, not a checkpoint",
            why="a download got a page in place of the file, which may need a login",
            fix="download the file itself",
        )
    if head.lstrip().startswith(b"{"):
        _refuse_json(file, field)


def _refuse_json(file: Path, field: str) -> None:
    if file.stat().st_size > LONGEST_TEXT:
        return
    try:
        json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return
    raise SourceError(
        f"{field}: {file.name}: this is a JSON file, not a checkpoint",
        fix="name the file that holds the weights",
    )
