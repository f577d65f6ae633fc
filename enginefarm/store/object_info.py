"""The metadata of an object from a listing or a HEAD request."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

MOST_READ_BYTES = 256 << 20
"""What one document, table or page may have."""


@dataclass(frozen=True)
class ObjectInfo:
    """One object, without its bytes. `key` is relative to the store's prefix."""

    key: str
    size_bytes: int
    etag: str
    modified: datetime
    metadata: dict[str, str]
    sha256_base64: str | None = None
    age: timedelta | None = None
    """By the server's own clock; None in a listing."""
