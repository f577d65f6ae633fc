"""The store: S3, or a real S3 server on a local folder when none is configured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from enginefarm.settings import current

if TYPE_CHECKING:
    from enginefarm.store.engine_store import EngineStore

__all__ = ["open_store"]

EMBEDDED = "embedded://"
"""Scheme of the embedded store's URL; the folder follows."""


def open_store(url: str | None = None, *, to_pull: bool = False) -> EngineStore:
    """The store at `url`, else at ENGINEFARM_STORE, else the embedded one.

    url: `s3://bucket/prefix` (credentials from the standard AWS_* variables), or
        `embedded:///folder`, which is also the `url` of the embedded store.
    to_pull: for a process that starts, reads a few documents and may end then (see `quick_client`).
    Raises: UsageError; StoreUnavailable when the embedded server cannot start. No request goes
    to an S3 server yet.
    """
    from enginefarm.store.engine_store import EngineStore

    url = url or current().store
    if url and not url.startswith(EMBEDDED):
        if to_pull:
            from enginefarm.store import quick_client

            objects = quick_client.connect(url)
            if objects is not None:
                return EngineStore(objects, url)
        from enginefarm.store import s3

        return EngineStore(s3.connect(url), url)
    from enginefarm.store import embedded, s3

    home = embedded.home_of(url)
    server = embedded.start(home)
    objects = s3.connect(
        f"s3://{embedded.BUCKET}", endpoint=server.endpoint, credentials=server.credentials
    )
    return EngineStore(objects, f"{EMBEDDED}{home}")
