"""Remembers the newest revision of each channel that this host has seen, to refuse an older one.

Somebody who can only write to the store cannot forge a signed revision, but can bring an older one
back by deleting the newer ones. A host that has seen a newer one notices it. A host cannot notice
that it never gets newer revisions, or that its own memory (a folder of the cache) was emptied.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from enginefarm.errors import SignatureRejected
from enginefarm.store import planted
from enginefarm.store.appearing import one_at_a_time, write_atomically
from enginefarm.store.channels import Revision


class SeenRevisions:
    """seen/<store>/<recipe>/<channel>: a number. `store` is a digest of the store's URL."""

    def __init__(self, cache_root: Path) -> None:
        self._root = cache_root / "seen"

    def require_no_older(self, store_url: str, revision: Revision) -> None:
        """Remembers a revision whose signature was checked.

        Raises: SignatureRejected when this host has seen a newer one.
        """
        store = hashlib.sha256(store_url.encode()).hexdigest()[:16]
        path = self._root / store / revision.recipe / revision.channel
        newest = self._read(path)
        if revision.revision < newest:
            raise SignatureRejected(
                f"signature: the channel {revision.recipe}@{revision.channel} has gone back to "
                f"revision {revision.revision}",
                why=f"this host has seen revision {newest}, and the number only grows: a rollback "
                "is a new revision. Somebody deleted revisions, or restored the store from an "
                "older copy",
                fix=f"promote again, past revision {newest}; or, if the older copy is intended, "
                f"delete {path}",
            )
        if revision.revision > newest:
            with one_at_a_time(path.parent):  # another pull may have seen a newer one meanwhile
                if revision.revision > self._read(path):
                    write_atomically(path, str(revision.revision).encode())

    @staticmethod
    def _read(path: Path) -> int:
        """0 where nothing was seen yet. A note that cannot be read is not taken for that."""
        try:
            path.lstat()
        except FileNotFoundError:
            return 0
        try:
            return int((planted.read(path) or b"").decode())
        except ValueError:
            raise SignatureRejected(
                f"signature: {path} is damaged",
                why="it says which revision of the channel this host has seen, so that an older "
                "one is noticed",
                fix="look whether the channel is at the revision that it should be at "
                "(enginefarm channel), and delete the file",
            ) from None
