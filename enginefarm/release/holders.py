"""What the documents of a store name, and so hold: gc deletes none of it."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator
from datetime import datetime
from itertools import islice

from enginefarm.errors import CorruptBlob
from enginefarm.store import channels
from enginefarm.store.engine_store import EngineStore

DIGEST_BYTES = 64
DIGEST = re.compile(rb"\b[0-9a-f]{64}\b")
DOCUMENT = ".json"
"""Objects with this ending are read and hold what they name; tables, pages and caches do not."""


def named_by_channels(
    store: EngineStore, revisions: int, recipes: Iterable[str] | None = None
) -> frozenset[str]:
    """Every digest in the channels' last revisions; recipes: None looks at all of them."""
    named: set[str] = set()
    if recipes is None:
        recipes = store.objects.folders(channels.CHANNELS)
    for recipe in recipes:
        for channel in channels.names(store, recipe):
            for key in islice(channels.keys(store, recipe, channel), revisions):
                # Read as text: a revision of a newer version holds its engines too.
                named |= digests(text(store, key))
    return frozenset(named)


def by_documents(
    store: EngineStore, deleted_keys: Container[str] = (), since: datetime | None = None
) -> frozenset[str]:
    """Every digest that a JSON document names, except those that go themselves.

    Any 64 hexadecimal digits count: a document that a later version adds holds its blobs too.
    since: documents that were written earlier are not read.
    """
    held: set[str] = set()
    for info in store.objects.list(""):
        counts = info.key not in deleted_keys and (since is None or info.modified >= since)
        if counts and info.key.endswith(DOCUMENT):
            held |= digests(text(store, info.key))
    return frozenset(held)


def text(store: EngineStore, key: str) -> Iterator[bytes]:
    """The bytes of a document. If it is too large for memory, it comes in overlapping pieces, so
    that each digest is whole in one of them."""
    try:
        found = store.objects.get(key)
        yield found[0] if found else b""
    except CorruptBlob:
        before = b""
        for piece in store.objects.pieces(key):
            yield before + piece
            before = (before + piece)[-DIGEST_BYTES:]


def digests(bodies: Iterable[bytes]) -> frozenset[str]:
    return frozenset(match.decode() for body in bodies for match in DIGEST.findall(body))
