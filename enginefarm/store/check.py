"""Checks that an S3 server supports what the farm needs: `enginefarm store check`.

It creates its own objects under `check/`, and deletes them.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import urllib3
from botocore.exceptions import ClientError

from enginefarm.digest import sha256_bytes
from enginefarm.errors import EnginefarmError, StoreConflict, StoreError
from enginefarm.store.s3 import LISTING_PAGE, ObjectStore
from enginefarm.store.transfers import PART_BYTES

RACERS = 8
LISTED = LISTING_PAGE + 1
PROBE = "check/conditional"


class Check(NamedTuple):
    """needed: what the farm needs from a server. failure: empty if the server supports it."""

    needed: str
    failure: str


def checks(objects: ObjectStore) -> list[Check]:
    """Runs every check on its own objects. A check that fails does not stop the others."""
    prefix = f"check/{secrets.token_hex(6)}/"
    results: list[Check] = []
    try:
        for number, (needed, check) in enumerate(CHECKS.items()):
            try:
                done = check(objects, f"{prefix}{number}/")
                results.append(Check(needed, "" if done else "the server does not do this"))
            except EnginefarmError as error:
                results.append(Check(needed, error.what))
            except ClientError as error:
                results.append(Check(needed, str(error)))
    finally:
        keys = [info.key for info in objects.list(prefix)]
        with ThreadPoolExecutor(RACERS) as pool:
            list(pool.map(objects.delete, keys))
    return results


def require_conditional_writes(objects: ObjectStore) -> None:
    """Makes one request to a store that was used before, and two to a new one.

    Raises: StoreError for a server that ignores `If-None-Match`: two builds or two promotions
    could overwrite each other there.
    """
    if objects.put_if_absent(PROBE, b"one winner") is None:
        return
    if objects.put_if_absent(PROBE, b"another winner") is not None:
        raise StoreError(
            f"store: {objects.where} accepts conditional writes and ignores the condition",
            why="of two people who publish or promote at once, the second overwrites the first",
            fix="use another S3 server; `enginefarm store check` shows what a server supports",
        )


def _metadata(objects: ObjectStore, prefix: str) -> bool:
    objects.put(f"{prefix}one", b"first", Metadata={"sha256": "x"})
    found = objects.head(f"{prefix}one")
    return found is not None and found.metadata == {"sha256": "x"}


def _refuses_to_overwrite(objects: ObjectStore, prefix: str) -> bool:
    objects.put(f"{prefix}one", b"first")
    return objects.put_if_absent(f"{prefix}one", b"second") is None


def _one_winner(objects: ObjectStore, prefix: str) -> bool:
    key = f"{prefix}race"
    bodies = [str(number).encode() for number in range(RACERS)]
    with ThreadPoolExecutor(RACERS) as pool:
        won = list(pool.map(partial(objects.put_if_absent, key), bodies))
    return sum(etag is not None for etag in won) == 1


def _replaces_the_current(objects: ObjectStore, prefix: str) -> bool:
    etag = objects.put(f"{prefix}one", b"first")
    return objects.put_if_match(f"{prefix}one", b"second", etag) != etag


def _keeps_the_newer(objects: ObjectStore, prefix: str) -> bool:
    old = objects.put(f"{prefix}one", b"first")
    objects.put(f"{prefix}one", b"second")
    try:
        objects.put_if_match(f"{prefix}one", b"third", old)
    except StoreConflict:
        return True
    return False


def _range(objects: ObjectStore, prefix: str) -> bool:
    objects.put(f"{prefix}one", b"third")
    body, total = objects.range(f"{prefix}one", 1, 3)
    return (body.read(), total) == (b"hi", 5)


def _checksum(objects: ObjectStore, prefix: str) -> bool:
    """The server refuses bytes that do not match the sha256 sent with them."""
    wrong = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
    try:
        objects.client.put_object(
            Bucket=objects.bucket,
            Key=objects.full(f"{prefix}one"),
            Body=b"first",
            ChecksumSHA256=wrong,
        )
    except ClientError:
        return objects.head(f"{prefix}one") is None
    return False


def _multipart(objects: ObjectStore, prefix: str) -> bool:
    """A file uploaded in two parts comes back with its metadata."""
    data = secrets.token_bytes(1 << 16) * (PART_BYTES // (1 << 16)) + b"the second part"
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        objects.upload_file(Path(file.name), f"{prefix}large", metadata={"sha256": "x"})
    found, back = objects.head(f"{prefix}large"), objects.get(f"{prefix}large")
    if found is None or back is None:
        return False
    return found.metadata == {"sha256": "x"} and sha256_bytes(back[0]) == sha256_bytes(data)


def _copy(objects: ObjectStore, prefix: str) -> bool:
    """A copy of an object onto itself keeps its bytes and metadata, and gets a new date."""
    objects.put(f"{prefix}one", b"first", Metadata={"sha256": "x"})
    before = objects.head(f"{prefix}one")
    if before is None:
        return False
    objects.touch(before)
    after, body = objects.head(f"{prefix}one"), objects.get(f"{prefix}one")
    if after is None or body is None:
        return False
    return (after.metadata, body[0]) == (before.metadata, b"first")


def _signed_url(objects: ObjectStore, prefix: str) -> bool:
    """A version 4 signature works, also for a range."""
    objects.put(f"{prefix}one", b"third")
    url = objects.presigned_get(f"{prefix}one", 60)
    with urllib3.PoolManager(retries=False, timeout=10) as pool:
        answer = pool.request("GET", url, headers={"Range": "bytes=1-2"})
        refused = pool.request("GET", url.replace("X-Amz-Expires=60", "X-Amz-Expires=61"))
    return (answer.status, answer.data) == (206, b"hi") and refused.status in (400, 401, 403)


def _listing(objects: ObjectStore, prefix: str) -> bool:
    """Keys just written are listed in order and past one page, and as folders one level below."""
    keys = [f"{prefix}{number:05d}/x" for number in range(LISTED)]
    with ThreadPoolExecutor(2 * RACERS) as pool:
        list(pool.map(partial(objects.put, data=b""), keys))
    listed = [info.key for info in objects.list(prefix)]
    return listed == keys and len(list(objects.folders(prefix))) == LISTED


def _clock(objects: ObjectStore, prefix: str) -> bool:
    """The dates of objects and of answers come from the same clock: gc compares the two."""
    objects.put(f"{prefix}one", b"")
    found = objects.head(f"{prefix}one")
    return found is not None and found.age is not None and abs(found.age.total_seconds()) < 60


CHECKS: dict[str, Callable[[ObjectStore, str], bool]] = {
    "metadata is kept": _metadata,
    "If-None-Match: * refuses to overwrite": _refuses_to_overwrite,
    f"one winner among {RACERS} that create an object at the same time": _one_winner,
    "If-Match replaces the current version": _replaces_the_current,
    "If-Match refuses an old version": _keeps_the_newer,
    "a range of an object can be read": _range,
    "a wrong checksum is refused": _checksum,
    "a file uploaded in parts comes back complete": _multipart,
    "a copy onto itself keeps bytes and metadata": _copy,
    "a signed URL works, and a changed one does not": _signed_url,
    f"a listing shows {LISTED:,} keys that were just written, in order": _listing,
    "objects are dated by the server's clock": _clock,
}
