"""A user's file in S3: its version, and a streamed download. Not the engine store."""

from __future__ import annotations

import shutil
from pathlib import Path

from enginefarm.errors import SourceError, StoreMissing
from enginefarm.store.disk import writing
from enginefarm.store.failures import mapped
from enginefarm.store.s3 import ObjectStore, connect

CHUNK_BYTES = 1 << 20


def version(url: str) -> str:
    """What changes when the object does: its sha256 where the server keeps one, else etag.

    Raises: SourceError when the object does not exist; StoreError.
    """
    objects, key = _open(url)
    info = objects.head(key)
    if info is None:
        raise SourceError(f"source.path: {url}: the object does not exist", fix="correct the path")
    return info.sha256_base64 or info.etag


def download(url: str, folder: Path) -> Path:
    """The object as a file in the folder.

    Raises: SourceError when the object does not exist; StoreError; DiskFull.
    """
    objects, key = _open(url)
    file = folder / key
    try:
        with mapped(objects.bucket, objects.where, objects.full(key)), writing(file):
            answer = objects.client.get_object(Bucket=objects.bucket, Key=objects.full(key))
            with file.open("wb") as stream:
                shutil.copyfileobj(answer["Body"], stream, CHUNK_BYTES)
    except StoreMissing as error:
        raise SourceError(
            f"source.path: {url}: the object does not exist", why=error.what
        ) from error
    return file


def _open(url: str) -> tuple[ObjectStore, str]:
    folder, _, key = url.rpartition("/")
    if not key or folder in ("s3:", "s3:/"):
        raise SourceError(
            f"source.path: {url} is not a file in S3", fix="write s3://bucket/path/model.onnx"
        )
    return connect(folder), key
