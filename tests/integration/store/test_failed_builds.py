"""Logs of failed builds are kept in the store: a few of each engine, for a while."""

from __future__ import annotations

import datetime as dt

from enginefarm.store import failed_builds
from enginefarm.store.engine_store import EngineStore

NOON = dt.datetime(2026, 1, 2, 12, tzinfo=dt.UTC)


def fail(store: EngineStore, minute: int, gpu: str = "t4", text: bytes = b"said") -> str:
    now = NOON + dt.timedelta(minutes=minute)
    return failed_builds.record(store, "model", gpu, "fp16", f"{minute:064x}", text, now=now)


def test_the_newest_logs_of_each_engine_are_kept(store: EngineStore) -> None:
    for minute in range(failed_builds.KEPT + 3):
        fail(store, minute, text=f"said {minute}".encode())
    other = fail(store, 0, gpu="l4")
    kept = failed_builds.listed(store, "model", "t4")
    assert [one.at.minute for one in kept] == [7, 6, 5, 4, 3]
    assert failed_builds.read(store, kept[0]) == "said 7"
    assert [one.key for one in failed_builds.listed(store, "model", "l4")] == [other]
    assert len(failed_builds.listed(store, "model")) == failed_builds.KEPT + 1
    assert failed_builds.listed(store, "mode") == []


def test_the_end_of_a_long_log_is_kept(store: EngineStore) -> None:
    fail(store, 0, text=b"x" * failed_builds.LOG_BYTES + b"the reason")
    (kept,) = failed_builds.listed(store, "model")
    text = failed_builds.read(store, kept)
    assert text is not None
    assert len(text) == failed_builds.LOG_BYTES
    assert text.endswith("the reason")


def test_old_logs_and_strange_objects_do_no_harm(store: EngineStore) -> None:
    fail(store, 0)
    store.objects.put(f"{failed_builds.PREFIX}model/notes", b"somebody's")
    assert len(failed_builds.listed(store, "model")) == 1
    now = dt.datetime.now(dt.UTC)
    assert failed_builds.remove_old(store, now) == 0
    assert failed_builds.remove_old(store, now + dt.timedelta(days=31)) == 2
    assert failed_builds.listed(store, "model") == []
