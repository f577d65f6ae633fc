"""Multipart uploads and copies with s3transfer, boto3's own library for them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

PART_BYTES = 16 << 20


class Watcher:
    """Passes s3transfer's progress on."""

    def __init__(self, on_bytes: Callable[[int], None]) -> None:
        self._on_bytes = on_bytes

    def on_progress(self, future: Any, bytes_transferred: int, **_: Any) -> None:
        self._on_bytes(bytes_transferred)


def transfers(client: Any) -> Any:
    """A transfer manager, imported only for uploads because a pull does not need it."""
    manager: Any = import_module("s3transfer.manager")
    config = manager.TransferConfig(
        multipart_threshold=PART_BYTES,
        multipart_chunksize=PART_BYTES,
        max_request_concurrency=4,
    )
    return manager.TransferManager(client, config)
