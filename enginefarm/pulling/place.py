"""Puts an engine of the cache where it was asked for."""

from __future__ import annotations

from pathlib import Path

from enginefarm.digest import Ref
from enginefarm.store.cache import BlobCache
from enginefarm.store.disk import appearing, clone_checked, one_at_a_time, write_atomically


def place(cache: BlobCache, engine: Ref, name: str, manifest: bytes, dest: Path | None) -> Path:
    """The path of an engine that is in the cache.

    name: its file name. dest: a file, or a folder that exists, for a copy with the manifest next to
    it as `<dest>.json`; None leaves the engine in the cache.
    Raises: CorruptBlob, DiskFull.
    """
    if dest is None:
        return cache.link(name, engine)
    path = dest / name if dest.is_dir() else dest
    with one_at_a_time(path.parent):
        copy_out(cache.path(engine), path, engine)
        write_atomically(path.with_name(f"{path.name}.json"), manifest)
    return path


def copy_out(blob: Path, dest: Path, ref: Ref) -> Path:
    """Copies a blob out of the cache; `dest` appears complete or not at all.

    It is not a link, because a write to it must not change the cache. The copy is hashed, because
    whoever can write to the cache can replace the blob after it was checked there.
    Raises: CorruptBlob.
    """
    with appearing(dest) as part:
        clone_checked(blob, part, ref)
    return dest
