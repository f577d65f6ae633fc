"""gc that deletes at the worst moment, and clocks that disagree."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from enginefarm.building.engine import Job
from enginefarm.documents.manifest import Manifest
from enginefarm.errors import StoreConflict, StoreMissing
from enginefarm.pulling.presigned import presign
from enginefarm.release import promote as release
from enginefarm.store import channels, layout, site
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.s3 import ObjectStore
from enginefarm.store.site import Site
from tests.fake_builds import made
from tests.sample_manifest import make_manifest

pytestmark = pytest.mark.usefixtures("no_gpu_here")


def says(time: datetime) -> Callable[[ObjectStore, str], datetime]:
    return lambda _, prefix: time


def collected(store: EngineStore, manifest: Manifest) -> None:
    """What gc does to an engine that nothing held when it looked."""
    store.objects.delete(layout.index(layout.entry_of(manifest)))
    store.objects.delete(layout.manifest(manifest.spec_digest))


MOVES: dict[str, Callable[[EngineStore], object]] = {
    "promote": lambda store: release.promote(store, "model", "production", allow_pending=True),
    "rollback": lambda store: release.rollback(store, "model", "production"),
}


@pytest.mark.parametrize("action", MOVES)
def test_a_channel_never_moves_in_silence_to_an_engine_that_gc_deleted_meanwhile(
    store: EngineStore,
    publish: Callable[..., Manifest],
    action: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = publish(b"old", minutes=-5, salt="1")
    release.promote(store, "model", "production", allow_pending=True)
    new = publish(b"new", salt="2")
    lost = new
    if action == "rollback":
        release.promote(store, "model", "production", allow_pending=True)
        lost = old
    monkeypatch.setattr(release.signing, "signer", lambda: collected(store, lost))
    with pytest.raises(StoreMissing, match="deleted while the channel moved") as error:
        MOVES[action](store)
    assert error.value.what.startswith(f"{action} model@production: t4/fp16")


@pytest.mark.parametrize("action", MOVES)
def test_a_forged_last_revision_is_told_and_not_counted_on(
    store: EngineStore, publish: Callable[..., Manifest], action: str
) -> None:
    publish()
    first = release.promote(store, "model", "production", allow_pending=True)
    last = first.model_copy(update={"revision": channels.LAST_REVISION, "engines": ()})
    store.objects.put(last.key, last.canonical_json())
    with pytest.raises(StoreConflict, match="no revision can follow") as error:
        MOVES[action](store)
    assert last.key in error.value.fix


def test_an_engine_that_gc_deletes_while_it_is_found_does_not_count_as_built(
    store: EngineStore, publish: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = publish()
    here = site.here()
    assert site.whole(here, "model", found.spec_digest) == found

    def too_late(*_: object) -> None:
        collected(store, found)

    monkeypatch.setattr(EngineStore, "list_under", too_late)
    assert site.whole(here, "model", found.spec_digest) is None


def test_a_build_that_gc_overtakes_publishes_its_engine_again(
    store: EngineStore, publish: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = publish()
    put = ObjectStore.put

    def overtaken(self: ObjectStore, key: str, data: bytes, **extra: Any) -> str:
        if key.startswith(layout.INDEX):
            collected(store, first)
        return put(self, key, data, **extra)

    monkeypatch.setattr(ObjectStore, "put", overtaken)
    assert store.publish(first)
    assert store.manifest(first.spec_digest) == first
    assert store.complete("model") == {first.spec_digest}


def test_a_builder_whose_bytes_are_gone_does_not_take_back_the_engine_of_another(
    store: EngineStore, publish: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = publish(b"one build")
    second = make_manifest(engine=b"another build of the same spec")
    store.put_bytes(b"another build of the same spec")
    lost = layout.blob(second.engine)
    monkeypatch.setattr(store, "_replaced", lambda *_: store.objects.delete(lost))
    assert not store.publish(second)
    assert store.whole("model", [first.spec_digest]) == {first.spec_digest: first}


def test_when_an_engine_was_made_is_told_by_the_stores_clock(
    site: Site, job: Job, builds: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest engine is promoted and kept: of two builders one may have a wrong clock."""
    there = datetime(2027, 1, 1, tzinfo=UTC)
    monkeypatch.setattr(ObjectStore, "clock", says(there))
    assert made(site, job).created_at == there


@pytest.mark.parametrize(
    ("ahead_s", "signed_for_s"), [(0, 600), (300, 900), (-300, 300), (-900, 1)]
)
def test_a_url_works_as_long_as_it_says_by_the_stores_clock(
    publish: Callable[..., Manifest],
    monkeypatch: pytest.MonkeyPatch,
    ahead_s: int,
    signed_for_s: int,
) -> None:
    publish()
    server = datetime.now(UTC) + timedelta(seconds=ahead_s)
    monkeypatch.setattr(ObjectStore, "clock", says(server))
    url, _ = presign("model", gpu="t4", precision=None, expires_s=600)
    said = int(url.url.partition("X-Amz-Expires=")[2].partition("&")[0])
    assert abs(said - signed_for_s) <= 2
