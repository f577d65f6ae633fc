"""Keeps a cache within its limit by removing the least recently used blobs.

It never removes a blob that was used in the last hour, because a process may be about to open it,
nor the newest engine of each name under `engines/`, because a server restarts from it without the
store.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from enginefarm.store import untrusted_files

SEEN = ".seen"
SOURCES = "sources"
"""Folder of notes: which blob is which version of a user's file in S3."""
RECENT_S = 3600.0
ABANDONED_S = 24 * 3600.0
"""A partial download, scratch folder or lock that is older than this is abandoned."""

DIGEST_NAME = re.compile(r"[0-9a-f]{64}")
SPEC_IN_NAME = re.compile(r"-[0-9a-f]{12}\.plan$")
LEFT_BEHIND = (".part", ".pieces", ".new", ".lock")


class CacheEntry(NamedTuple):
    """One blob of the cache. used_at: seconds since 1970."""

    path: Path
    size_bytes: int
    used_at: float


class PruneReport(NamedTuple):
    files: int
    freed_bytes: int
    kept_bytes: int


def blobs_of(root: Path) -> Iterator[CacheEntry]:
    for path in (root / "blobs" / "sha256").glob("??/*"):
        if not DIGEST_NAME.fullmatch(path.name):
            continue
        with suppress(FileNotFoundError):
            found = path.stat()
            used = found.st_mtime
            with suppress(FileNotFoundError):
                used = max(used, path.with_name(f"{path.name}{SEEN}").stat().st_mtime)
            yield CacheEntry(path, found.st_size, used)


def keep_within(root: Path, limit_bytes: int, *, spare: Path | None = None) -> PruneReport:
    """Removes blobs until the rest fits the limit, or only protected blobs remain.

    spare: one more blob to keep.
    """
    found = sorted(blobs_of(root), key=lambda one: one.used_at)
    total = sum(one.size_bytes for one in found)
    removed, freed = 0, 0
    if total > limit_bytes:
        protected = _newest_engines(root)
        recent = time.time() - RECENT_S
        for one in found:
            if total - freed <= limit_bytes:
                break
            if one.path == spare or one.used_at > recent or one.path.resolve() in protected:
                continue
            one.path.unlink(missing_ok=True)
            one.path.with_name(f"{one.path.name}{SEEN}").unlink(missing_ok=True)
            removed, freed = removed + 1, freed + one.size_bytes
    return PruneReport(removed, freed, total - freed)


def clean(root: Path) -> int:
    """Removes what dead processes left behind, links to removed engines and notes of removed
    sources; returns how many."""
    before = time.time() - ABANDONED_S
    removed = 0
    for path in (root / "blobs" / "sha256").rglob("*"):
        with suppress(FileNotFoundError):
            if path.name.endswith(LEFT_BEHIND) and path.stat().st_mtime < before:
                path.unlink()
                removed += 1
    for folder in (root / "scratch").glob("*"):
        if _youngest(folder) < before:
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
    for name in (root / "engines").glob("*"):
        if name.is_symlink() and not name.exists():
            name.unlink(missing_ok=True)
            removed += 1
    blobs = {one.path.name for one in blobs_of(root)}
    for note in (root / SOURCES).glob("*"):
        if (untrusted_files.read(note) or b"").decode("ascii", "replace").partition(" ")[
            0
        ] not in blobs:
            note.unlink(missing_ok=True)
            removed += 1
    return removed


def _newest_engines(root: Path) -> frozenset[Path]:
    """The newest `model-t4-fp16-<spec>.plan` of each model, GPU and precision."""
    newest: dict[str, tuple[float, Path]] = {}
    for name in (root / "engines").glob("*"):
        with suppress(OSError):
            group = SPEC_IN_NAME.sub("", name.name)
            at = name.lstat().st_mtime
            newest[group] = max(newest.get(group, (0.0, name)), (at, name.resolve()))
    return frozenset(path for _, path in newest.values())


def _youngest(folder: Path) -> float:
    found = 0.0
    for path in (folder, *folder.rglob("*")):
        with suppress(FileNotFoundError):
            found = max(found, path.lstat().st_mtime)
    return found
