"""The store: S3, and a real S3 server on a local folder where none is set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from enginefarm.store.engine_store import EngineStore

__all__ = ["open_store"]

EMBEDDED = "embedded://"


def open_store(url: str | None = None) -> EngineStore:
    """The store at `url`, else at ENGINEFARM_STORE, else the embedded one.

    url: `s3://bucket/prefix` (credentials by the standard AWS_* variables), or
        `embedded:///folder`, which is also what the embedded store's `url` says.
    Raises: UsageError; StoreUnavailable when the embedded server cannot start. Nothing is
    asked of an S3 server here.
    """
    from enginefarm.store import embedded, s3
    from enginefarm.store.engine_store import EngineStore

    url = url or os.environ.get("ENGINEFARM_STORE") or f"{EMBEDDED}{embedded.default_home()}"
    if not url.startswith(EMBEDDED):
        return EngineStore(s3.connect(url), url)
    server = embedded.start(Path(url.removeprefix(EMBEDDED)))
    objects = s3.connect(
        f"s3://{embedded.BUCKET}", endpoint=server.endpoint, credentials=server.credentials
    )
    return EngineStore(objects, url)
