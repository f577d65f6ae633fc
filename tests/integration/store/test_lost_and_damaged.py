"""What a kill or a loss leaves in the store is found by the next build, and repaired by fsck."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sample_manifest import ref

import enginefarm
from enginefarm import cli
from enginefarm.building import engine as engines
from enginefarm.building.engine import Job
from enginefarm.documents.manifest import DeviceVerification, Manifest
from enginefarm.documents.spec import BlobRef
from enginefarm.errors import CorruptBlob, EngineRunError, NoEngineFits, StoreMissing
from enginefarm.release.fsck import check
from enginefarm.store import layout, quarantine
from enginefarm.store.cache import BlobCache
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.site import Site
from tests.fake_builds import made


def lose(store: EngineStore, blob: BlobRef) -> None:
    store.objects.delete(layout.blob(blob))


def damage(store: EngineStore, blob: BlobRef) -> None:
    """Other bytes of the same size under the same metadata: no HEAD tells them apart."""
    store.objects.client.put_object(
        Bucket=store.objects.bucket,
        Key=store.objects.full(layout.blob(blob)),
        Body=os.urandom(blob.size_bytes),
        Metadata={"sha256": blob.digest},
    )


def forget(cache: BlobCache, blob: BlobRef) -> None:
    cache.path(blob).unlink()


def run(*arguments: str) -> int:
    return cli.run(list(arguments))


def test_a_kill_between_manifest_and_index_loses_no_engine(
    site: Site, job: Job, builds: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    put = site.store.objects.put

    def killed(key: str, data: bytes, **extra: Any) -> str:
        if key.startswith(layout.INDEX):
            raise KeyboardInterrupt
        return put(key, data, **extra)

    with monkeypatch.context() as patch:
        patch.setattr(site.store.objects, "put", killed)
        with pytest.raises(KeyboardInterrupt):
            made(site, job)
    assert site.store.manifest(job.spec.digest) is not None
    assert list(site.store.index("model")) == []
    assert site.store.whole("model", [job.spec.digest]) == {}, "it is not cached"
    found = engines.build(site, job)
    assert isinstance(found, Manifest)
    assert enginefarm.pull("model", gpu="t4").manifest == found
    assert len(builds) == 1


def test_a_twin_that_finds_an_unlisted_engine_lists_it_under_both_names(
    site: Site, job: Job, builds: list[bytes]
) -> None:
    manifest = made(site, job)
    site.store.objects.delete(layout.index(layout.entry_of(manifest)))
    made(site, job.model_copy(update={"recipe": "twin"}))
    assert site.store.complete("model") == site.store.complete("twin") == {job.spec.digest}


@pytest.mark.parametrize("part", ["engine", "graph", "reference"])
def test_a_lost_blob_comes_back_from_the_cache(
    site: Site, job: Job, builds: list[bytes], part: str
) -> None:
    manifest = made(site, job)
    lost = {"engine": manifest.engine, "graph": manifest.graph.model}.get(
        part, job.prepared.reference
    )
    site.cache.ensure(site.store, lost)
    lose(site.store, lost)
    assert site.store.whole("model", [job.spec.digest]) == {}
    assert made(site, job) == manifest
    assert site.store.has_blob(lost)
    assert len(builds) == 1


def test_a_lost_engine_that_no_cache_has_is_built_and_takes_the_manifests_place(
    site: Site, job: Job, builds: list[bytes]
) -> None:
    first = made(site, job)
    lose(site.store, first.engine)
    forget(site.cache, first.engine)
    with pytest.raises(StoreMissing, match="build the recipe again"):
        enginefarm.pull("model", gpu="t4")
    second = made(site, job)
    assert builds == [b"plan 0", b"plan 1"]
    assert second.engine == ref(b"plan 1")
    assert enginefarm.pull("model", gpu="t4").path.read_bytes() == b"plan 1"


def test_a_damaged_manifest_is_replaced_by_a_build(
    site: Site, job: Job, builds: list[bytes]
) -> None:
    manifest = made(site, job)
    site.store.objects.put(layout.manifest(job.spec.digest), b'{"recipe": 3}')
    assert site.store.whole("model", [job.spec.digest]) == {}
    assert made(site, job).engine == manifest.engine
    assert enginefarm.pull("model", gpu="t4").path.read_bytes() == b"plan 0"


def test_an_engine_that_failed_on_its_gpu_stays_away_whoever_died_meanwhile(
    site: Site, job: Job, builds: list[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    manifest = made(site, job)
    failed = DeviceVerification(status="failed", reason="NaN")
    (tmp_path / "log").write_text("log")
    for method, survived in (("put", 1), ("delete", 0), ("delete", 1)):
        calls = iter([*[getattr(site.store.objects, method)] * survived, None])

        def dies(*arguments: Any, calls: Any = calls, **named: Any) -> Any:
            call = next(calls)
            if call is None:
                raise KeyboardInterrupt
            return call(*arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(site.store.objects, method, dies)
            with pytest.raises(KeyboardInterrupt):
                quarantine.record(site.store, manifest, failed, tmp_path / "log")
        with pytest.raises((NoEngineFits, StoreMissing)):
            enginefarm.pull("model", gpu="t4")
        assert site.store.whole("model", [job.spec.digest]) == {}
    with pytest.raises(EngineRunError, match="quarantine"):
        made(site, job)
    assert site.store.manifest(job.spec.digest) is None, "and the build withdraws it to the end"


def test_fsck_finds_nothing_in_a_whole_store(site: Site, job: Job, builds: list[bytes]) -> None:
    made(site, job)
    audit = check(site, read_bytes=True)
    assert audit.findings == ()
    assert audit.engines == 1
    assert audit.bytes_hashed > 0
    assert run("fsck") == 0


def test_fsck_mends_what_it_says_it_mends(
    site: Site, job: Job, builds: list[bytes], tmp_path: Path
) -> None:
    manifest = made(site, job)
    site.store.objects.delete(layout.index(layout.entry_of(manifest)))
    stray = layout.IndexEntry("model", "t4", "fp16", "0" * 64)
    site.store.objects.put(layout.index(stray), b"")
    site.store.objects.put(layout.manifest("1" * 64), b"no JSON")
    site.store.objects.put("stages/export/" + "2" * 64 + ".json", b"{}")
    lose(site.store, manifest.engine)
    assert run("fsck") == CorruptBlob.exit_code
    before = {info.key for info in site.store.objects.list("")}
    assert {one.repaired for one in check(site).findings} == {False}
    assert {info.key for info in site.store.objects.list("")} == before, "an audit writes nothing"
    assert run("fsck", "--repair") == 0
    assert run("fsck") == 0
    assert enginefarm.pull("model", gpu="t4", cache=BlobCache(tmp_path / "host")).path.exists()


@pytest.mark.parametrize("in_the_cache", [True, False])
def test_the_remedy_that_a_corrupt_blob_prints_mends_it(
    site: Site, job: Job, builds: list[bytes], tmp_path: Path, in_the_cache: bool
) -> None:
    manifest = made(site, job)
    damage(site.store, manifest.engine)
    host = BlobCache(tmp_path / "host")
    with pytest.raises(CorruptBlob) as refused:
        enginefarm.pull("model", gpu="t4", cache=host)
    command, _, then = refused.value.fix.partition(", then ")
    assert command == "enginefarm fsck --bytes --repair"
    assert then == "build the recipe again"
    if not in_the_cache:
        forget(site.cache, manifest.engine)
    run(*command.split()[1:])
    again = made(site, job)
    assert enginefarm.pull("model", gpu="t4", cache=host).path.read_bytes() == builds[-1]
    assert (again.engine == manifest.engine) == in_the_cache
    assert run("fsck", "--bytes") == 0


def test_a_lost_file_of_a_channel_or_a_recipe_is_said_and_left(
    site: Site, job: Job, builds: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    made(site, job)
    assert run("promote", "model", "--allow-pending") == 0
    site.store.objects.delete(layout.manifest(job.spec.digest))
    assert run("fsck", "--repair") == CorruptBlob.exit_code
    assert "channels/model/production/" in capsys.readouterr().out


def test_what_a_newer_version_wrote_is_left_alone(
    site: Site, job: Job, builds: list[bytes], write_newer: Callable[[str], None]
) -> None:
    made(site, job)
    write_newer(job.spec.digest)
    audit = check(site, repair=True)
    assert [one.harmless for one in audit.findings] == [True]
    assert site.store.objects.get(layout.manifest(job.spec.digest)) is not None
    assert len(list(site.store.index("model"))) == 1


@pytest.fixture
def write_newer(site: Site) -> Callable[[str], None]:
    def write(digest: str) -> None:
        key = layout.manifest(digest)
        found = site.store.objects.get(key)
        assert found is not None
        body = found[0].replace(b'"schema_version":1', b'"schema_version":9')
        assert body != found[0]
        site.store.objects.put(key, body)

    return write
