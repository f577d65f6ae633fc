"""Remembers the newest revision of each channel that this host has seen, to refuse an older one.

Somebody who can only write to the store cannot forge a signed revision, but can bring an older one
back by deleting the newer ones. A host that has seen a newer one notices it. A host cannot notice
that it never gets newer revisions, or that its own memory (a folder of the cache) was emptied.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from enginefarm.errors import SignatureRejected
from enginefarm.store import untrusted_files
from enginefarm.store.channels import Revision
from enginefarm.store.client import parse_url
from enginefarm.store.disk import one_at_a_time, write_atomically


class SeenRevision(NamedTuple):
    """digest: of the revision; empty in the notes of earlier versions."""

    revision: int
    digest: str = ""


class SeenRevisions:
    """seen/<store>/<recipe>/<channel>: a number and a digest. `store` is a digest of the store's
    URL, which has the same one however it is written."""

    def __init__(self, cache_root: Path) -> None:
        self._root = cache_root / "seen"

    def require_no_older(self, store_url: str, revision: Revision) -> None:
        """Remembers a revision whose signature was checked.

        Raises: SignatureRejected when this host has seen a newer one, or a different one of the
        same number: there are two if somebody deleted the first.
        """
        store = hashlib.sha256(_plain(store_url).encode()).hexdigest()[:16]
        path = self._root / store / revision.recipe / revision.channel
        found = SeenRevision(
            revision.revision, hashlib.sha256(revision.canonical_json()).hexdigest()
        )
        newest = self._read(path)
        name = f"{revision.recipe}@{revision.channel}"
        fix = (
            f"promote again, past revision {newest.revision}; or, if the older copy is intended, "
            f"delete {path}"
        )
        if found.revision < newest.revision:
            raise SignatureRejected(
                f"signature: the channel {name} has gone back to revision {found.revision}",
                why=f"this host has seen revision {newest.revision}, and the number only grows: a "
                "rollback is a new revision. Somebody deleted revisions, or restored the store "
                "from an older copy",
                fix=fix,
            )
        if found.revision == newest.revision and newest.digest not in ("", found.digest):
            raise SignatureRejected(
                f"signature: revision {found.revision} of the channel {name} is not the one that "
                "this host has seen",
                why="a revision never changes: somebody deleted the one that it saw",
                fix=fix,
            )
        if found > newest:
            with one_at_a_time(path.parent):  # another pull may have seen a newer one meanwhile
                if found > self._read(path):
                    write_atomically(path, f"{found.revision} {found.digest}".encode())

    @staticmethod
    def _read(path: Path) -> SeenRevision:
        """Revision 0 where nothing was seen yet. A note that cannot be read is not taken for
        that."""
        try:
            path.lstat()
        except FileNotFoundError:
            return SeenRevision(0)
        try:
            number, _, digest = (untrusted_files.read(path) or b"").decode().strip().partition(" ")
            return SeenRevision(int(number), digest)
        except ValueError:
            raise SignatureRejected(
                f"signature: {path} is damaged",
                why="it records which revision of the channel this host has seen, so that an older "
                "one is noticed",
                fix="check that the channel is at the revision that it should be at "
                "(enginefarm channel), and delete the file",
            ) from None


def _plain(store_url: str) -> str:
    """One spelling of a store's URL."""
    if not store_url.startswith("s3://"):
        return store_url.rstrip("/")
    bucket, prefix = parse_url(store_url)
    return f"s3://{bucket}/{prefix}".rstrip("/")
