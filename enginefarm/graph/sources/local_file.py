"""A file that a recipe names, once it is certain that it is that file and not a stand-in."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from enginefarm.digest import sha256_file, sha256_files
from enginefarm.errors import EnginefarmError, SourceError
from enginefarm.schema import can_be_a_file

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
LONGEST_STAND_IN = 1024


def local_file(
    path: str, root: Path, *, field: str, error: type[EnginefarmError] = SourceError
) -> Path:
    """The file, relative to the recipe.

    Raises: `error` when there is none, it is empty, not a regular file, a Git LFS pointer, or
    the text of a link that was copied as a file.
    """
    if not path:
        raise error(f"{field}: it is empty", fix="write the file's path, relative to the recipe")
    file = root / path
    try:
        about = file.stat()
    except (OSError, ValueError) as cause:
        broken = file.is_symlink()
        raise error(
            f"{field}: {path}: the {'link leads to no file' if broken else 'file does not exist'}",
            why=f"looked for {file.readlink() if broken else file}",
            fix="the path is relative to the recipe's folder",
        ) from cause
    if not stat.S_ISREG(about.st_mode):
        what = "a folder" if stat.S_ISDIR(about.st_mode) else "a pipe or a device"
        raise error(f"{field}: {path}: it is {what}", fix="name the file itself")
    if about.st_size == 0:
        raise error(f"{field}: {path}: the file is empty", fix="copy it again")
    if about.st_size <= LONGEST_STAND_IN:
        refuse_stand_in(file.read_bytes(), path, file.parent, field=field, error=error)
    return file


def refuse_stand_in(
    data: bytes, path: str, folder: Path, *, field: str, error: type[EnginefarmError]
) -> None:
    """Raises: `error` for what a repository without its large files or links holds instead."""
    if data.startswith(LFS_POINTER):
        raise error(
            f"{field}: {path}: this is a Git LFS pointer, not the file itself",
            why="the repository was copied or cloned without its large files",
            fix="run `git lfs pull` there, or download the file itself",
        )
    target = _link_text(data)
    if target is not None and ("/" in target or (folder / target).exists()):
        raise error(
            f"{field}: {path}: this is the text of a link to {target!r}, not the file",
            why="a symbolic link was copied or checked out as a text file",
            fix="put the file that the link leads to in its place",
        )


def _link_text(data: bytes) -> str | None:
    try:
        text = data.decode("utf-8").strip()
    except UnicodeDecodeError:
        return None
    plain = text.isprintable() and not set(text) & set(" :{}[]")
    return text if text and plain and can_be_a_file(text) else None


def file_digest(path: str, root: Path, *, field: str) -> str:
    """sha256 of the file. Raises: as `local_file`."""
    return sha256_file(local_file(path, root, field=field))


def depends_digests(
    paths: Iterable[str], root: Path, *, field: str, error: type[EnginefarmError] = SourceError
) -> list[str]:
    """sha256 of each file, or of each folder's files, that a recipe depends on.

    Raises: as `local_file`.
    """
    return [
        folder_digest(root / path)
        if path and (root / path).is_dir()
        else sha256_file(local_file(path, root, field=field, error=error))
        for path in paths
    ]


def folder_digest(folder: Path) -> str:
    """sha256 of all files below the folder, with their names; hidden ones and bytecode do not
    count."""

    def counts(path: Path) -> bool:
        parts = path.relative_to(folder).parts
        return "__pycache__" not in parts and not any(part.startswith(".") for part in parts)

    found = (path for path in folder.rglob("*") if counts(path) and path.is_file())
    return sha256_files((str(path.relative_to(folder)), path) for path in found)


def named_files(value: object, root: Path) -> dict[str, str]:
    """sha256 of each file or folder that a text in the value names, relative to the recipe.

    A callable that loads its own weights is told where they are: new weights are a new model.
    A folder that the recipe itself is in does not count.
    """
    if isinstance(value, dict):
        value = list(cast("dict[str, object]", value).values())
    if isinstance(value, list | tuple):
        found: dict[str, str] = {}
        for item in cast("list[object]", value):
            found |= named_files(item, root)
        return found
    if not isinstance(value, str) or not value or len(value) > LONGEST_STAND_IN or "\0" in value:
        return {}
    path = root / value
    try:
        if path.is_file():
            return {value: sha256_file(path)}
        if path.is_dir() and not root.resolve().is_relative_to(path.resolve()):
            return {value: folder_digest(path)}
    except OSError:  # too long for a name
        pass
    return {}
