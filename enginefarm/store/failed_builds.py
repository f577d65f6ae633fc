"""Logs of builds that failed, under `failures/` in the store: the last few of each engine.

A builder's log is a blob of its manifest; a build that fails has none, and this is what is left.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from enginefarm.store.engine_store import EngineStore

PREFIX = "failures/"
KEPT = 5
"""Logs of one recipe, GPU and precision; an older one makes room for each that comes."""

KEPT_DAYS = 30
LOG_BYTES = 4 << 20
"""The end of a longer log is kept: that is where the reason stands."""

STAMP = "%Y%m%dT%H%M%S%fZ"


@dataclass(frozen=True)
class FailedBuild:
    """One log: its key in the store, and what the key says."""

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
    """The logs that are kept, newest first. Raises: StoreError."""
    found = [_parsed(info.key) for info in store.objects.list(f"{PREFIX}{recipe}/")]
    wanted = [
        one
        for one in found
        if one is not None and gpu in (None, one.gpu) and precision in (None, one.precision)
    ]
    return sorted(wanted, key=lambda one: (one.at, one.key), reverse=True)


def read(store: EngineStore, failed: FailedBuild) -> str | None:
    """The text; None when it has been deleted meanwhile. Raises: StoreError."""
    body = store.objects.get(failed.key)
    return None if body is None else body[0].decode("utf-8", "replace")


def remove_old(store: EngineStore, now: dt.datetime) -> int:
    """Deletes logs older than KEPT_DAYS, of every recipe; returns how many."""
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
    """None for an object that is not such a log."""
    try:
        _, gpu, precision, name = key.removeprefix(PREFIX).split("/")
        stamp, _, spec = name.removesuffix(".log").partition("-")
        at = dt.datetime.strptime(stamp, STAMP).replace(tzinfo=dt.UTC)
    except ValueError:
        return None
    return FailedBuild(key, gpu, precision, spec, at)
