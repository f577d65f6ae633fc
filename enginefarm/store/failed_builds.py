"""Logs of failed builds, under `failures/` in the store: the last few of each engine.

The log of a successful build is a blob of its manifest; a failed build has no manifest.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from enginefarm.store.engine_store import EngineStore

PREFIX = "failures/"
KEPT = 5
"""Logs of one recipe, GPU and precision; each new log replaces the oldest."""

KEPT_DAYS = 30
LOG_BYTES = 4 << 20
"""Only the end of a longer log is kept, because the reason is there."""

STAMP = "%Y%m%dT%H%M%S%fZ"


@dataclass(frozen=True)
class FailedBuild:
    """One log: its key in the store, and the parts of the key."""

    key: str
    gpu: str
    precision: str
    spec: str
    """The first 12 characters of the spec's digest."""
    at: dt.datetime


def record(
    store: EngineStore,
    recipe: str,
    gpu: str,
    precision: str,
    spec_digest: str,
    text: bytes,
    *,
    now: dt.datetime | None = None,
) -> str:
    """Stores a log, and deletes all but the newest KEPT; returns its key. Raises: StoreError."""
    moment = now or dt.datetime.now(dt.UTC)
    key = f"{_folder(recipe, gpu, precision)}{moment.strftime(STAMP)}-{spec_digest[:12]}.log"
    store.objects.put(key, text[-LOG_BYTES:])
    for old in listed(store, recipe, gpu, precision)[KEPT:]:
        store.objects.delete(old.key)
    return key


def listed(
    store: EngineStore, recipe: str, gpu: str | None = None, precision: str | None = None
) -> list[FailedBuild]:
    """The logs in the store, newest first. Raises: StoreError."""
    found = [_parsed(info.key) for info in store.objects.list(f"{PREFIX}{recipe}/")]
    wanted = [
        one
        for one in found
        if one is not None and gpu in (None, one.gpu) and precision in (None, one.precision)
    ]
    return sorted(wanted, key=lambda one: (one.at, one.key), reverse=True)


def read(store: EngineStore, failed: FailedBuild) -> str | None:
    """The text of a log; None when it was deleted meanwhile. Raises: StoreError."""
    body = store.objects.get(failed.key)
    return None if body is None else body[0].decode("utf-8", "replace")


def remove_old(store: EngineStore, now: dt.datetime) -> int:
    """Deletes the logs of every recipe that are older than KEPT_DAYS; returns their number."""
    old = [
        info.key
        for info in store.objects.list(PREFIX)
        if now - info.modified > dt.timedelta(days=KEPT_DAYS)
    ]
    for key in old:
        store.objects.delete(key)
    return len(old)


def _folder(recipe: str, gpu: str, precision: str) -> str:
    return f"{PREFIX}{recipe}/{gpu}/{precision}/"


def _parsed(key: str) -> FailedBuild | None:
    """The log with this key; None for any other object."""
    try:
        _, gpu, precision, name = key.removeprefix(PREFIX).split("/")
        stamp, _, spec = name.removesuffix(".log").partition("-")
        at = dt.datetime.strptime(stamp, STAMP).replace(tzinfo=dt.UTC)
    except ValueError:
        return None
    return FailedBuild(key, gpu, precision, spec, at)
