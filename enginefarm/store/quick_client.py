"""Reads for a pull with obstore, which loads in a tenth of the time that botocore takes.

obstore is used only when the environment holds a key, and nothing else that changes where botocore
would look or whom it would trust. If the answer is not an object, a listing or NoSuchKey, botocore
repeats the request, with its retries and its well-known errors, and makes all later requests.
docs/decisions/0250-a-cached-pull-reads-with-obstore.md.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginefarm.store.client import (
    ENDPOINTS,
    PLAIN_VALUE,
    configured_endpoint,
    configured_region,
    parse_url,
)
from enginefarm.store.object_info import MOST_READ_BYTES, ObjectInfo

if TYPE_CHECKING:
    from obstore.store import S3Store

    from enginefarm.store.s3 import ObjectStore

KEY = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
MAY_LACK = ("AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", *ENDPOINTS)
UNDERSTOOD = frozenset({*KEY, *MAY_LACK})
"""Any other AWS_* variable may mean something else to obstore than to botocore."""
PROXIES = ("_PROXY",)
CERTIFICATES = ("_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""Endings of the names of variables that the two libraries interpret differently."""
PLAIN_KEY = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*", re.ASCII)
"""Keys that obstore sends unchanged; it normalizes all others."""
PLAIN_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
"""Bucket names that botocore puts into the host name unless an endpoint is configured."""
CONNECT_S, ANSWER_S = "5s", "10s"
"""Limits for one document. Ctrl-C waits for it; after the limit, botocore repeats the request."""

_forked = threading.Event()
os.register_at_fork(after_in_child=_forked.set)


def fits(url: str, environment: Mapping[str, str], home: Path) -> bool:
    """Whether obstore would ask the same server with the same key as botocore."""
    bucket, prefix = parse_url(url)
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL") or ""
    ignored = CERTIFICATES if endpoint.startswith("http://") else ()
    counting = [name for name in environment if not name.upper().endswith(ignored)]
    return (
        # obstore's library panics on other characters
        all(PLAIN_VALUE.fullmatch(environment.get(name, "")) for name in KEY)
        and all(PLAIN_VALUE.fullmatch(environment.get(name) or "-") for name in MAY_LACK)
        and all(name in UNDERSTOOD for name in counting if name.startswith("AWS_"))
        and not any(name.upper().endswith(PROXIES + CERTIFICATES) for name in counting)
        and not any((home / ".aws" / name).exists() for name in ("config", "credentials"))
        and PLAIN_BUCKET.fullmatch(bucket) is not None
        and (not prefix or PLAIN_KEY.fullmatch(prefix[:-1]) is not None)
        and not _forked.is_set()  # its threads do not survive a fork
    )


class QuickStore:
    """An ObjectStore that reads and lists without botocore if it can. Threads can share it."""

    def __init__(self, url: str, reader: S3Store, make: Callable[[], ObjectStore]) -> None:
        self.bucket, self.prefix = parse_url(url)
        self._reader: Any = reader
        self._make = make
        self.made: ObjectStore | None = None
        self._lock = threading.Lock()

    @property
    def _whole(self) -> ObjectStore:
        with self._lock:
            if self.made is None:
                self.made = self._make()
            return self.made

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def _serves(self, key: str) -> bool:
        plain = PLAIN_KEY.fullmatch(self.prefix + key) is not None
        return plain and self.made is None and not _forked.is_set()

    def get(self, key: str) -> tuple[bytes, str] | None:
        """As ObjectStore.get."""
        if self._serves(key):
            try:
                found = self._reader.get(self.prefix + key)
                etag = found.meta["e_tag"]
                if etag and found.meta["size"] <= MOST_READ_BYTES:
                    return bytes(found.bytes()), etag
            except FileNotFoundError as error:
                if "<Code>NoSuchKey</Code>" in str(error):
                    return None
            except Exception:  # noqa: S110 - botocore repeats the request and reports its error
                pass
        return self._whole.get(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """As ObjectStore.list. obstore can list only whole folders."""
        last = ""
        if prefix.endswith("/") and self._serves(prefix[:-1]):
            try:
                for page in self._reader.list(self.prefix + prefix):
                    for one in page:
                        key = one["path"].removeprefix(self.prefix)
                        yield ObjectInfo(
                            key, one["size"], one["e_tag"] or "", one["last_modified"], {}
                        )
                        last = key
                return
            except Exception:  # noqa: S110 - botocore continues after the last key
                pass
        for info in self._whole.list(prefix):
            if info.key.encode() > last.encode():
                yield info

    def first(self, prefix: str) -> str | None:
        """As ObjectStore.first; it costs a page of a listing."""
        found = next(self.list(prefix), None)
        return found.key if found else None


def connect(url: str) -> ObjectStore | None:
    """A store for reading; None if only botocore can tell how to reach it. Makes no request."""
    if not fits(url, os.environ, Path.home()):
        return None
    from obstore.store import S3Store

    bucket, _ = parse_url(url)
    endpoint = configured_endpoint()
    may_lack = {"endpoint": endpoint, "session_token": os.environ.get("AWS_SESSION_TOKEN")}
    optional: Any = {name: value for name, value in may_lack.items() if value}
    reader = S3Store(
        bucket,
        region=configured_region() or "us-east-1",
        access_key_id=os.environ[KEY[0]],
        secret_access_key=os.environ[KEY[1]],
        virtual_hosted_style_request=endpoint is None,
        client_options={
            "allow_http": (endpoint or "").startswith("http://"),
            "connect_timeout": CONNECT_S,
            "timeout": ANSWER_S,
        },
        retry_config={"max_retries": 0},
        **optional,
    )

    def make() -> ObjectStore:
        from enginefarm.store import s3

        return s3.connect(url)

    store: Any = QuickStore(url, reader, make)
    return store
