"""The sources of a download's ranges: the store, or a presigned URL."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit, urlunsplit

import urllib3
from botocore.exceptions import ClientError
from urllib3.util import Retry, Timeout

from enginefarm.documents.spec import BlobRef
from enginefarm.errors import (
    CorruptBlob,
    EnginefarmError,
    StoreDenied,
    StoreMissing,
    StoreUnavailable,
    UsageError,
)
from enginefarm.store import layout
from enginefarm.store.blobs import missing
from enginefarm.store.failures import is_missing_key, translate
from enginefarm.store.s3 import ObjectStore

DOCUMENT_BYTES = 4 << 20
FILE_NAME = re.compile(r"\w[\w.@+-]{0,200}")


class BlobSource:
    """A blob of the store."""

    def __init__(self, objects: ObjectStore, ref: BlobRef) -> None:
        self._objects = objects
        self._key = layout.blob(ref)
        self._ref = ref
        self.name = f"store: blob {ref.digest[:12]}"

    def range(self, start: int, end: int) -> tuple[Any, int]:
        return self._objects.range(self._key, start, end)

    def failure(self, error: Exception) -> EnginefarmError:
        if isinstance(error, ClientError) and is_missing_key(error):
            return missing(self._ref)
        return translate(
            error,
            bucket=self._objects.bucket,
            where=self._objects.where,
            key=self._objects.full(self._key),
        )


@dataclass(frozen=True)
class PresignedUrl:
    """A URL that needs no credentials, with the digest that its bytes must have.

    The digest is in the URL's fragment, which no client sends to a server.
    manifest, signature: presigned URLs of these, for hosts that accept only signed engines;
    empty if the engine was not signed.
    """

    url: str
    ref: BlobRef
    name: str
    manifest: str = ""
    signature: str = ""

    def __str__(self) -> str:
        signed = f"&manifest={quote(self.manifest, '')}&signature={quote(self.signature, '')}"
        return (
            f"{self.url}#sha256={self.ref.digest}&size={self.ref.size_bytes}"
            f"&name={quote(self.name)}{signed if self.signature else ''}"
        )

    @classmethod
    def parse(cls, text: str) -> PresignedUrl:
        """Raises: UsageError for a URL without a digest."""
        try:
            parts = urlsplit(text)
            fields = {name: values[0] for name, values in parse_qs(parts.fragment).items()}
            ref = BlobRef(digest=fields["sha256"], size_bytes=int(fields["size"]))
        except (KeyError, ValueError):
            raise UsageError(
                "pull --url: the URL does not contain the digest of the engine",
                fix="copy the whole line that `enginefarm url` printed, up to its end",
            ) from None
        proofs = fields.get("manifest", ""), fields.get("signature", "")
        schemes = {parts.scheme, *(urlsplit(url).scheme for url in proofs if url)}
        if not schemes <= {"http", "https"}:
            raise UsageError("pull --url: only http and https URLs can be pulled")
        # Somebody else wrote the URL: its name must not lead out of a folder.
        name = fields.get("name", "")
        if not FILE_NAME.fullmatch(name):
            name = ref.digest
        return cls(urlunsplit(parts._replace(fragment="")), ref, name, *proofs)


class _Answered(ConnectionError):
    """An answer that is not a range. It is a ConnectionError, so that 5xx is tried again."""

    def __init__(self, status: int) -> None:
        super().__init__(str(status))
        self.status = status


class UrlSource:
    """A presigned URL. Messages contain only its host, because the rest is a credential."""

    def __init__(self, presigned: PresignedUrl) -> None:
        self._url = presigned.url
        host = urlsplit(presigned.url).netloc.rpartition("@")[2]
        self.name = f"{host}: blob {presigned.ref.digest[:12]}"
        self._pool = urllib3.PoolManager(
            maxsize=8, retries=Retry(0, redirect=2), timeout=Timeout(connect=5, read=60)
        )

    def range(self, start: int, end: int) -> tuple[Any, int]:
        answer: Any = self._pool.request(
            "GET",
            self._url,
            headers={"Range": f"bytes={start}-{end - 1}"},
            preload_content=False,
        )
        if answer.status != 206:
            answer.close()
            if answer.status < 500:
                raise _refused(self.name, answer.status)
            raise _Answered(answer.status)
        total = str(answer.headers.get("Content-Range", "")).rpartition("/")[2]
        return answer, int(total) if total.isdigit() else -1

    def failure(self, error: Exception) -> EnginefarmError:
        return StoreUnavailable(f"{self.name}: no answer", why=type(error).__name__)


def read_url(url: str, what: str) -> bytes:
    """The document behind a presigned URL. what: its name in errors.

    Raises: StoreDenied when the URL has expired; StoreMissing; StoreUnavailable; CorruptBlob for
    more than DOCUMENT_BYTES.
    """
    name = f"{urlsplit(url).netloc.rpartition('@')[2]}: {what}"
    for wait_s in (0.3, 0.6, 1.2):
        with suppress(StoreUnavailable):
            return _read_once(url, name)
        time.sleep(wait_s)
    return _read_once(url, name)


def _read_once(url: str, name: str) -> bytes:
    """Makes one request. urllib3 must not retry: it would log the URL, a credential."""
    once = Retry(0, redirect=2)
    try:
        with urllib3.PoolManager(retries=once, timeout=Timeout(connect=5, read=60)) as pool:
            answer: Any = pool.request("GET", url, preload_content=False)
            if answer.status >= 500:
                raise StoreUnavailable(f"{name}: no answer", why=f"HTTP {answer.status}")
            if answer.status != 200:
                raise _refused(name, answer.status)
            data: bytes = answer.read(DOCUMENT_BYTES + 1)
    except urllib3.exceptions.HTTPError as error:
        raise StoreUnavailable(f"{name}: no answer", why=type(error).__name__) from error
    if len(data) > DOCUMENT_BYTES:
        raise CorruptBlob(f"{name} has more than {DOCUMENT_BYTES:,} bytes")
    return data


def _refused(name: str, status: int) -> EnginefarmError:
    if status in (401, 403):
        return StoreDenied(
            f"{name}: access refused ({status})",
            why="the URL has expired, or was changed",
            fix="ask for a new one: enginefarm url",
        )
    return StoreMissing(f"{name} does not exist (HTTP {status})")
