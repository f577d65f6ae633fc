"""gc against a real S3 server, alone and racing builds."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sample_manifest import make_manifest

from enginefarm.cli import run
from enginefarm.documents.manifest import Manifest
from enginefarm.documents.spec import BlobRef
from enginefarm.documents.stage import StageRecord
from enginefarm.errors import StoreDenied, StoreMissing, UsageError
from enginefarm.release import gc as release_gc
from enginefarm.release import promote as release
from enginefarm.release.gc import Policy, collect
from enginefarm.store import blobs, layout
from enginefarm.store.cache import BlobCache
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.s3 import ObjectStore
from enginefarm.store.site import Site, whole

LATER = datetime.now(UTC) + timedelta(days=30)


def publish(store: EngineStore, number: int = 0, **changes: object) -> Manifest:
    engine, graph = f"engine {number}".encode(), f"graph {number}".encode()
    made = make_manifest(
        engine=engine,
        graph=graph,
        minutes=number - 10_000,
        **changes,  # type: ignore[arg-type]
    )
    store.put_bytes(engine)
    store.put_bytes(graph)
    store.publish(made)
    return made


def stage(store: EngineStore, name: str, output: BlobRef) -> None:
    store.put_stage(
        StageRecord(
            stage=name,
            key=os.urandom(32).hex(),
            outputs={"model": output},
            seconds=1,
            created_at=datetime.now(UTC),
        )
    )


def test_the_last_builds_stay_and_older_ones_go_with_their_bytes(store: EngineStore) -> None:
    builds = [publish(store, number) for number in range(5)]
    found = collect(store, Policy(keep_builds=2), delete=True, now=LATER)
    assert found.kept_engines == 2
    assert store.complete("model") == {one.spec_digest for one in builds[3:]}
    for one in builds[:3]:
        assert not store.has_blob(one.engine)
        assert store.manifest(one.spec_digest) is None
    for one in builds[3:]:
        assert store.has_blob(one.engine)
        assert store.has_blob(one.graph.model)
        assert store.manifest(one.spec_digest) == one
    again = collect(store, Policy(keep_builds=2), delete=True, now=LATER)
    assert again.garbage == ()


def test_an_engine_goes_only_when_no_recipe_that_shares_it_needs_it(store: EngineStore) -> None:
    shared, *newer = [publish(store, number) for number in range(3)]
    store.list_under("twin", shared)
    collect(store, Policy(keep_builds=1), delete=True, now=LATER)
    assert store.complete("twin") == {shared.spec_digest}
    assert store.has_blob(shared.engine)
    twin = publish(store, 9, recipe="twin")
    collect(store, Policy(keep_builds=1), delete=True, now=LATER)
    assert store.complete("twin") == {twin.spec_digest}
    assert store.complete("model") == {newer[-1].spec_digest}, "no entry is left behind"


def test_a_dry_run_deletes_nothing_and_says_the_same(store: EngineStore) -> None:
    for number in range(4):
        publish(store, number)
    before = [info.key for info in store.objects.list("")]
    said = collect(store, Policy(keep_builds=1), now=LATER)
    assert [info.key for info in store.objects.list("")] == before
    done = collect(store, Policy(keep_builds=1), delete=True, now=LATER)
    assert said.garbage == done.garbage
    assert said.freed_bytes > 0


def test_the_grace_period_keeps_everything(store: EngineStore) -> None:
    for number in range(4):
        publish(store, number)
    store.put_bytes(b"of a build that has not published yet")
    blobs_only = [
        one
        for one in collect(store, Policy(keep_builds=1)).garbage
        if one.key.startswith(layout.BLOBS)
    ]
    assert blobs_only == []


def test_what_a_channel_names_stays_and_can_be_rolled_back_to(store: EngineStore) -> None:
    first = publish(store, 0)
    release.promote(store, "model", "production", allow_pending=True)
    second = publish(store, 1)
    release.promote(store, "model", "production", allow_pending=True)
    for number in range(2, 5):
        publish(store, number)
    collect(store, Policy(keep_builds=1), delete=True, now=LATER)
    assert {first.spec_digest, second.spec_digest} <= store.complete("model")
    back = release.rollback(store, "model", "production")
    assert back.engines[0].spec_digest == first.spec_digest


def test_stage_records_go_with_the_models_they_belong_to(store: EngineStore) -> None:
    kept = publish(store, 0)
    orphan = store.put_bytes(b"slimmed graph of a model that is gone")
    stage(store, "slim", kept.graph.model)
    stage(store, "slim", orphan)
    collect(store, Policy(), delete=True, now=LATER)
    assert not store.has_blob(orphan)
    assert len(list(store.objects.list(layout.STAGES))) == 1


def test_a_document_that_gc_has_never_heard_of_holds_its_blobs(store: EngineStore) -> None:
    log = store.put_bytes(b"log")
    store.objects.put("quarantine/x.json", f'{{"log": "{log.digest}"}}'.encode())
    collect(store, Policy(), delete=True, now=LATER)
    assert store.has_blob(log)


def test_a_grace_period_that_protects_nobody_is_refused(store: EngineStore) -> None:
    with pytest.raises(UsageError, match="protect"):
        collect(store, Policy(grace=timedelta(minutes=1)))


def test_racing_builds_lose_nothing(store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Builders publish, reuse old blobs and publish again, while gc deletes all the time."""
    monkeypatch.setattr(blobs, "TOUCH_AFTER", timedelta(seconds=1))
    policy = Policy(keep_builds=1, grace=timedelta(seconds=3))
    stop = threading.Event()
    deleted = 0

    def sweep() -> None:
        nonlocal deleted
        while not stop.is_set():
            deleted += len(collect(store, policy, delete=True).garbage)

    def build(builder: int) -> list[Manifest]:
        published: list[Manifest] = []
        for number in range(10):
            # Every third build uses bytes that were there before and may be garbage by now.
            engine = f"engine {builder} {number % 3}".encode()
            manifest = make_manifest(
                f"model-{builder}",
                engine=engine,
                salt=f"{number}",
                minutes=number,
            ).model_copy(update={"created_at": datetime.now(UTC)})
            store.put_bytes(b"graph")
            store.put_bytes(engine)
            try:
                store.publish(manifest)
            except StoreMissing:
                continue  # told so: a farm builds it again
            published.append(manifest)
            time.sleep(0.8)
        return published

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            runs = list(pool.map(build, range(4)))
    finally:
        stop.set()
        sweeper.join()
    assert deleted > 0
    for published in runs:
        assert len(published) >= 8
        # The newest is held; every manifest that is there has its bytes.
        assert store.manifest(published[-1].spec_digest) is not None
    for manifest in store.manifests():
        assert store.read_bytes(manifest.engine)
        assert store.read_bytes(manifest.graph.model)


@pytest.mark.parametrize("again", ["promoted", "listed", "published"])
def test_an_engine_that_is_used_again_after_the_first_look_stays(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    old, *_ = [publish(store, number) for number in range(3)]
    time.sleep(1.1)
    look = release_gc._delete

    def meanwhile(*arguments: object) -> object:
        if again == "promoted":
            with monkeypatch.context() as patch:
                patch.setattr(release, "newest_engines", lambda *_: (old,))
                release.promote(store, "model", "production", allow_pending=True)
        elif again == "listed":
            store.list_under("model", old)
        else:
            store.objects.put(layout.manifest(old.spec_digest), old.canonical_json())
        return look(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(release_gc, "_delete", meanwhile)
    second_ago = store.objects.clock() + Policy().grace
    collect(store, Policy(keep_builds=1), delete=True, now=second_ago)
    assert store.manifest(old.spec_digest) is not None
    assert store.has_blob(old.engine)


def test_a_wrong_clock_of_this_machine_deletes_nothing_that_is_in_use(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Builders' and the collector's clocks say nothing: the store's dates do."""
    for number in range(5):
        publish(store, number)  # `created_at` is days ago

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return datetime.now(UTC) + timedelta(days=365)

    for module in (release_gc, blobs):
        monkeypatch.setattr(module, "datetime", Ahead, raising=False)
    assert collect(store, Policy(keep_builds=1), delete=True).garbage == ()
    assert len(store.complete("model")) == 5


def test_the_command(store_environment: EngineStore, capsys: pytest.CaptureFixture[str]) -> None:
    publish(store_environment, 0)
    assert run(["gc"]) == 0
    assert "1 engines" in capsys.readouterr().out
    assert run(["gc", "--grace-hours", "0"]) == 2


def meanwhile(
    monkeypatch: pytest.MonkeyPatch, key: str, action: Callable[[], object], *, after: bool = False
) -> None:
    """Does something once, in gc's last moment before (or after) it deletes that object."""
    delete = ObjectStore.delete
    waiting = [action]

    def deleted(self: ObjectStore, which: str) -> None:
        if after:
            delete(self, which)
        if which == key and waiting:
            waiting.pop()()
        if not after:
            delete(self, which)

    monkeypatch.setattr(ObjectStore, "delete", deleted)


def here(store: EngineStore) -> Site:
    return Site(store=store, cache=BlobCache())


def swept(store: EngineStore) -> release_gc.Collection:
    """gc, for which everything is old that was written more than a second ago."""
    time.sleep(2.1)
    second_ago = store.objects.clock() + Policy().grace - timedelta(seconds=1)
    return collect(store, Policy(keep_builds=1), delete=True, now=second_ago)


@pytest.mark.parametrize("again", ["found", "promoted"])
def test_an_engine_that_is_used_between_the_last_look_and_the_deletion_comes_back(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    """Who used it saw the manifest after its own write, and was told that all is well."""
    old, _ = publish(store, 0), publish(store, 1)

    def used() -> None:
        if again == "promoted":
            with monkeypatch.context() as patch:
                patch.setattr(release, "newest_engines", lambda *_: (old,))
                release.promote(store, "model", "production", allow_pending=True)
        else:
            assert whole(here(store), "model", old.spec_digest) == old

    meanwhile(monkeypatch, layout.manifest(old.spec_digest), used)
    found = swept(store)
    assert found.garbage == ()
    assert store.whole("model", [old.spec_digest]) == {old.spec_digest: old}


def test_a_key_that_may_only_delete_says_what_it_cannot_put_back(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `infra/s3-policies/collect.json` has it."""
    old, _ = publish(store, 0), publish(store, 1)

    def denied(*_: object) -> None:
        raise StoreDenied("store: access denied")

    def used() -> None:
        assert whole(here(store), "model", old.spec_digest) == old
        monkeypatch.setattr(ObjectStore, "put_if_absent", denied)

    meanwhile(monkeypatch, layout.manifest(old.spec_digest), used)
    with pytest.raises(StoreMissing, match="something used it again") as caught:
        swept(store)
    assert old.spec_digest in caught.value.what


def test_an_engine_that_is_built_again_while_gc_deletes_it_is_listed(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, _ = publish(store, 0), publish(store, 1)
    entry = layout.index(layout.entry_of(old))
    meanwhile(monkeypatch, entry, lambda: store.publish(old))
    swept(store)
    assert store.whole("model", [old.spec_digest]) == {old.spec_digest: old}


def test_a_record_that_is_written_again_after_the_first_look_stays(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signer believes only a record of the plan that it has just built."""
    made = store.put_bytes(b"a plan")
    stage(store, "slim", made)
    (info,) = store.objects.list(layout.STAGES)
    look = release_gc._delete

    def again(*arguments: object) -> object:
        found = store.objects.get(info.key)
        assert found is not None
        store.objects.put(info.key, found[0])
        return look(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(release_gc, "_delete", again)
    swept(store)
    assert [one.key for one in store.objects.list(layout.STAGES)] == [info.key]
    assert store.has_blob(made)


def test_a_blob_that_an_engine_uses_in_the_moment_of_its_deletion_is_told_and_built_again(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes cannot come back by themselves: the engine is never called complete."""
    monkeypatch.setattr(blobs, "TOUCH_AFTER", timedelta(seconds=1))
    publish(store, 1)
    used = make_manifest(engine=b"used again", salt="again")
    for data in (b"used again", b"graph"):
        store.put_bytes(data)
    meanwhile(monkeypatch, layout.blob(used.engine), lambda: store.publish(used))
    with pytest.raises(StoreMissing, match="1 blobs were deleted at the moment") as caught:
        swept(store)
    assert used.engine.digest in caught.value.why
    assert store.whole("model", [used.spec_digest]) == {}
    store.put_bytes(b"used again")
    assert not store.publish(used)
    assert store.whole("model", [used.spec_digest]) == {used.spec_digest: used}
