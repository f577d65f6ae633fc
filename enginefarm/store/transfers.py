"""Multipart uploads, downloads and copies with s3transfer, boto3's own library for them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from enginefarm.errors import StoreConflict

PART_BYTES = 16 << 20


class Watcher:
    """Passes s3transfer's progress on."""

    def __init__(self, on_bytes: Callable[[int], None]) -> None:
        self._on_bytes = on_bytes

    def on_progress(self, future: Any, bytes_transferred: int, **_: Any) -> None:
        self._on_bytes(bytes_transferred)


def transfers(client: Any) -> Any:
    """A transfer manager, imported only where it is used because a pull does not need it."""
    manager: Any = import_module("s3transfer.manager")
    config = manager.TransferConfig(
        multipart_threshold=PART_BYTES,
        multipart_chunksize=PART_BYTES,
        max_request_concurrency=4,
    )
    return manager.TransferManager(client, config)


def download(client: Any, bucket: str, key: str, path: Path) -> None:
    """Downloads an object in parts to a file. A part that is interrupted is asked for again.

    Raises: StoreConflict where the object is replaced meanwhile; errors of botocore and urllib3.
    """
    failures: Any = import_module("s3transfer.exceptions")
    with transfers(client) as manager:
        try:
            manager.download(bucket, key, str(path)).result()
        except failures.RetriesExceededError as error:
            raise error.last_exception from error
        except failures.S3DownloadFailedError as error:
            raise StoreConflict(f"store: somebody else replaced {key}") from error
