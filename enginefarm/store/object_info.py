"""The metadata of an object from a listing or a HEAD request."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

MOST_READ_BYTES = 256 << 20
"""The largest document, table or page that is read into memory."""


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
    """Measured by the server's own clock; None in a listing."""
