"""Reads and writes weights in a separate file next to the model, one tensor at a time.

onnx's own functions refuse files with hard links, which caches and package managers create, and
files whose name exists in the current folder; they also hold the weights in memory twice.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from enginefarm.errors import EnginefarmError

if TYPE_CHECKING:
    from onnx import TensorProto

ALIGNMENT = 4096
"""ONNX Runtime can map a tensor into memory if it begins on a page."""


def write(
    tensors: Iterable[TensorProto], file: Path, held: Mapping[str, TensorProto], *, above_bytes: int
) -> None:
    """Moves the bytes of large tensors into `file`, and notes their place in the tensors.

    held: by name, tensors of another model that hold the bytes of those that have none. They keep
    them.
    """
    from onnx import TensorProto

    with file.open("wb") as stream:
        for tensor in tensors:
            empty = tensor.data_location == TensorProto.EXTERNAL
            values = (held.get(tensor.name, tensor) if empty else tensor).raw_data
            if len(values) < above_bytes:
                continue
            stream.seek(-stream.tell() % ALIGNMENT, os.SEEK_CUR)
            entries = (file.name, str(stream.tell()), str(len(values)))
            stream.write(values)
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            del tensor.external_data[:]
            for key, value in zip(("location", "offset", "length"), entries, strict=True):
                tensor.external_data.add(key=key, value=value)
    file.chmod(0o644)


def read(tensor: TensorProto, folder: Path, name: str, error: type[EnginefarmError]) -> None:
    """Reads the bytes of a tensor into memory from a plain file in the model's folder.

    name: the model, for messages. Raises: `error`.
    """
    entries = {item.key: item.value for item in tensor.external_data}
    location = entries.get("location", "")
    file = folder / location
    if not may_hold(location, folder):
        raise error(
            f"{name}: tensor {tensor.name!r} keeps its data in {location!r}",
            why="external data must be a plain file in the model's own folder, and not a link",
            fix="save the model again with its data next to it",
        )
    try:
        offset = int(entries.get("offset") or 0)
        # O_NONBLOCK: opening a pipe would wait for its writer.
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError("it is not a file")
            length = int(entries.get("length") or status.st_size - offset)
            if offset < 0 or length < 0 or offset + length > status.st_size:
                raise OSError(
                    f"it has {status.st_size} bytes, and {length} are needed from byte {offset}"
                )
            stream.seek(offset)
            tensor.raw_data = stream.read(length)
    except (OSError, ValueError) as cause:
        raise error(
            f"{name}: the data of tensor {tensor.name!r} cannot be read from {location!r}",
            why=str(cause),
            fix="copy the complete data file next to the model",
        ) from cause
    # The bytes are in memory now.
    tensor.ClearField("data_location")
    del tensor.external_data[:]


def may_hold(location: str, folder: Path) -> bool:
    """Whether external data is allowed at a place: in the model's own folder, not behind a link."""
    where = PurePosixPath(location)
    if not location or where.is_absolute() or ".." in where.parts:
        return False
    try:
        return not any((folder / part).is_symlink() for part in (where, *where.parents))
    except OSError:  # a file cannot have this name
        return False
