"""ObjectStore: all S3 requests except ranges of presigned URLs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from enginefarm.errors import CorruptBlob, StoreConflict, StoreMissing
from enginefarm.store.client import USUAL, Credentials, Patience, new_client, parse_url
from enginefarm.store.disk import writing
from enginefarm.store.failures import (
    TRANSPORT,
    clock_of,
    code_of,
    is_missing_key,
    mapped,
    translate,
)
from enginefarm.store.object_info import MOST_READ_BYTES, ObjectInfo
from enginefarm.store.transfers import Watcher, download, transfers

LISTING_PAGE = 1000
PIECE_BYTES = 1 << 20
UPDATES = 10
"""Tries of an update while other processes write the same object."""
BODY_RETRIES_S = (0.1, 0.2, 0.4)
"""Waits before a read is retried: botocore retries requests, but not an interrupted body."""


class ObjectStore:
    """One bucket and prefix. Safe to share between threads.

    Raises, from every method: StoreUnavailable, StoreDenied, StoreMissing, StoreConflict,
    StoreError.
    """

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self.client = client
        self.bucket = bucket
        self.prefix = prefix
        self.where: str = client.meta.endpoint_url

    def full(self, key: str) -> str:
        return f"{self.prefix}{key}"

    def _mapped(self, key: str = "") -> Any:
        return mapped(self.bucket, self.where, self.full(key) if key else "")

    def _answer(self, request: Callable[..., Any], key: str, **extra: Any) -> Any:
        """The server's answer to a question about an object; None when it does not exist."""
        try:
            return request(Bucket=self.bucket, Key=self.full(key), **extra)
        except ClientError as error:
            if is_missing_key(error):
                return None
            raise

    def get(self, key: str) -> tuple[bytes, str] | None:
        """The bytes and etag of a small object; None when it does not exist."""
        with self._mapped(key):
            for wait_s in BODY_RETRIES_S:
                with suppress(*TRANSPORT):
                    return self._get(key)
                time.sleep(wait_s)
            return self._get(key)

    def _get(self, key: str) -> tuple[bytes, str] | None:
        try:
            answer = self._answer(self.client.get_object, key)
        except TRANSPORT as error:
            raise translate(
                error, bucket=self.bucket, where=self.where, key=self.full(key)
            ) from error
        if answer is None:
            return None
        size_bytes = int(answer["ContentLength"])
        if size_bytes > MOST_READ_BYTES:
            answer["Body"].close()
            raise CorruptBlob(
                f"store: {self.full(key)} has {size_bytes:,} bytes; at most {MOST_READ_BYTES:,} "
                "are read into memory",
                why="the farm writes nothing that large there",
            )
        return answer["Body"].read(), answer["ETag"]

    def pieces(self, key: str) -> Iterator[bytes]:
        """The bytes of an object of any size in pieces; no pieces when it does not exist."""
        with self._mapped(key):
            answer = self._answer(self.client.get_object, key)
            if answer is not None:
                yield from answer["Body"].iter_chunks(PIECE_BYTES)

    def head(self, key: str) -> ObjectInfo | None:
        with self._mapped(key):
            answer = self._answer(self.client.head_object, key, ChecksumMode="ENABLED")
        if answer is None:
            return None
        return ObjectInfo(
            age=(clock_of(answer) or datetime.now(UTC)) - answer["LastModified"],
            key=key,
            size_bytes=answer["ContentLength"],
            etag=answer["ETag"],
            modified=answer["LastModified"],
            metadata=answer.get("Metadata", {}),
            sha256_base64=answer.get("ChecksumSHA256"),
        )

    def put(self, key: str, data: bytes, **extra: Any) -> str:
        """Writes the object, replacing an existing one. Returns the etag."""
        with self._mapped(key):
            answer = self.client.put_object(
                Bucket=self.bucket,
                Key=self.full(key),
                Body=data,
                ChecksumAlgorithm="SHA256",
                **extra,
            )
        return answer["ETag"]

    def put_if_absent(self, key: str, data: bytes) -> str | None:
        """Creates the object; None if it already exists. Only one of several writers succeeds."""
        try:
            return self.put(key, data, IfNoneMatch="*")
        except StoreConflict:
            return None

    def put_if_match(self, key: str, data: bytes, etag: str) -> str:
        """Replaces the version with that etag; StoreConflict if it is not the current one."""
        try:
            return self.put(key, data, IfMatch=etag)
        except StoreMissing as error:  # S3 answers 404 when the object was deleted meanwhile
            if self.head(key) is not None:
                raise
            raise StoreConflict(f"store: somebody else deleted {self.full(key)}") from error

    def update(self, key: str, change: Callable[[bytes | None], bytes | None]) -> None:
        """Writes what `change` makes of the object's bytes, or of None while it does not exist.
        It is called again when somebody else wrote meanwhile. If it returns None, nothing is
        written."""
        for _ in range(UPDATES):
            found = self.get(key)
            data = change(None if found is None else found[0])
            if data is None:
                return
            with suppress(StoreConflict):
                if found is not None:
                    self.put_if_match(key, data, found[1])
                    return
                if self.put_if_absent(key, data) is not None:
                    return
        raise StoreConflict(f"store: other processes keep writing {self.full(key)}")

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object under a prefix, page by page, in key order."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket,
            Prefix=self.full(prefix),
            PaginationConfig={"PageSize": LISTING_PAGE},
        )
        with self._mapped(prefix):
            for page in pages:
                for item in page.get("Contents", ()):
                    yield ObjectInfo(
                        key=item["Key"].removeprefix(self.prefix),
                        size_bytes=item["Size"],
                        etag=item["ETag"],
                        modified=item["LastModified"],
                        metadata={},
                    )

    def first(self, prefix: str) -> str | None:
        """The first key under a prefix in key order, or None."""
        found = self._one_listed(prefix).get("Contents", ())
        return found[0]["Key"].removeprefix(self.prefix) if found else None

    def clock(self, prefix: str = "") -> datetime:
        """The server's time, to compare with the dates of its objects.

        prefix: what the key of this process may list.
        """
        return clock_of(self._one_listed(prefix)) or datetime.now(UTC)

    def _one_listed(self, prefix: str) -> Any:
        with self._mapped(prefix):
            return self.client.list_objects_v2(
                Bucket=self.bucket, Prefix=self.full(prefix), MaxKeys=1
            )

    def folders(self, prefix: str) -> Iterator[str]:
        """The names one level below a prefix that ends in a slash."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self.full(prefix), Delimiter="/"
        )
        with self._mapped(prefix):
            for page in pages:
                for item in page.get("CommonPrefixes", ()):
                    yield item["Prefix"].removeprefix(self.full(prefix)).rstrip("/")

    def delete(self, key: str) -> None:
        with self._mapped(key):
            self.client.delete_object(Bucket=self.bucket, Key=self.full(key))

    def touch(self, info: ObjectInfo) -> None:
        """Gives an object a new modification time by copying it on the server."""
        key = self.full(info.key)
        with self._mapped(info.key), transfers(self.client) as manager:
            manager.copy(
                {"Bucket": self.bucket, "Key": key},
                self.bucket,
                key,
                extra_args={
                    "Metadata": info.metadata,
                    "MetadataDirective": "REPLACE",
                    "ChecksumAlgorithm": "SHA256",
                },
            ).result()

    def upload_file(
        self,
        path: Path,
        key: str,
        *,
        metadata: dict[str, str],
        on_bytes: Callable[[int], None] | None = None,
    ) -> None:
        """Uploads a file in parts. The server checks the sha256 of each part.

        on_bytes: upload threads call it with the number of bytes just sent.
        """
        with self._mapped(key), transfers(self.client) as manager:
            manager.upload(
                str(path),
                self.bucket,
                self.full(key),
                extra_args={"Metadata": metadata, "ChecksumAlgorithm": "SHA256"},
                subscribers=[Watcher(on_bytes)] if on_bytes else None,
            ).result()

    def download_file(self, key: str, path: Path) -> None:
        """An object of any size, as a file. Raises: also DiskFull."""
        with self._mapped(key), writing(path):
            download(self.client, self.bucket, self.full(key), path)

    def range(self, key: str, start: int, end: int) -> tuple[Any, int]:
        """A stream over bytes [start, end), and the size of the whole object (-1: unknown).

        Errors of botocore and urllib3 pass through, because the caller resumes the download.
        """
        answer = self.client.get_object(
            Bucket=self.bucket, Key=self.full(key), Range=f"bytes={start}-{end - 1}"
        )
        total = str(answer.get("ContentRange", "")).rpartition("/")[2]
        return answer["Body"], int(total) if total.isdigit() else -1

    def presigned_get(self, key: str, seconds: int) -> str:
        with self._mapped(key):
            return self.client.generate_presigned_url(
                "get_object",
                Params={"Bucket": self.bucket, "Key": self.full(key)},
                ExpiresIn=seconds,
            )

    def create_bucket(self) -> None:
        with self._mapped():
            try:
                self.client.create_bucket(Bucket=self.bucket)
            except ClientError as error:
                if code_of(error) not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                    raise


def connect(
    url: str,
    *,
    endpoint: str | None = None,
    credentials: Credentials | None = None,
    patience: Patience = USUAL,
) -> ObjectStore:
    """An ObjectStore for `s3://bucket/prefix`; makes no request.

    Without `endpoint` and `credentials` the standard AWS_* variables and files decide.
    """
    bucket, prefix = parse_url(url)
    return ObjectStore(new_client(endpoint, credentials, patience), bucket, prefix)
