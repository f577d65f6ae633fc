"""Pull through a proxy that cuts, truncates, delays, damages and refuses.

Never a wrong byte accepted, never an engine lost, and a cut download goes on where it was.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faulty_proxy import FaultyProxy
from sample_manifest import make_manifest

import enginefarm
from enginefarm.cli import run
from enginefarm.documents.manifest import Manifest
from enginefarm.errors import CorruptBlob, EnginefarmError, StoreConflict, StoreUnavailable
from enginefarm.host import detect as host
from enginefarm.release import promote as release
from enginefarm.store import download, layout, s3
from enginefarm.store.cache import BlobCache
from enginefarm.store.client import Patience
from enginefarm.store.embedded import Server
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.sources import PresignedUrl, UrlSource

PIECE = 256 << 10
SIZE = 20 * PIECE + 777


@pytest.fixture
def proxy(s3_server: Server) -> Iterator[FaultyProxy]:
    made = FaultyProxy(s3_server.endpoint)
    yield made
    made.close()


@pytest.fixture
def through(
    proxy: FaultyProxy, s3_server: Server, store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> EngineStore:
    """The same store, seen through the proxy; in small pieces, so that much can go wrong."""
    monkeypatch.setattr(download, "PIECE_BYTES", PIECE)
    monkeypatch.setattr(host, "first_gpu", lambda: None)
    objects = s3.connect(
        store.url,
        endpoint=proxy.endpoint,
        credentials=s3_server.credentials,
        patience=Patience(read_s=10),
    )
    return EngineStore(objects, store.url)


def publish(store: EngineStore, engine: bytes, **changes: object) -> Manifest:
    manifest = make_manifest(engine=engine, **changes)  # type: ignore[arg-type]
    store.put_bytes(engine)
    store.put_bytes(b"graph")
    store.publish(manifest)
    return manifest


def test_the_proxy_alone_changes_nothing(through: EngineStore, tmp_path: Path) -> None:
    engine = os.urandom(SIZE)
    publish(through, engine)
    pulled = enginefarm.pull("model", gpu="t4", store=through, cache=BlobCache(tmp_path))
    assert pulled.path.read_bytes() == engine


@pytest.mark.parametrize("fault", ["cut", "truncated", "500", "503", "slow", "reset"])
def test_each_fault_that_can_be_ridden_out_is(
    store: EngineStore, through: EngineStore, proxy: FaultyProxy, tmp_path: Path, fault: str
) -> None:
    engine = os.urandom(SIZE)
    ref = publish(store, engine).engine
    proxy.chance, proxy.faults = 0.2, (fault,)
    assert BlobCache(tmp_path).ensure(through, ref).read_bytes() == engine
    assert proxy.done[fault] > 0


def test_of_everything_at_once_no_wrong_byte_is_accepted_and_nothing_is_lost(
    store: EngineStore, through: EngineStore, proxy: FaultyProxy, tmp_path: Path
) -> None:
    engine = os.urandom(SIZE)
    publish(store, engine)
    proxy.chance = 0.10
    outcomes: list[str] = []
    for number in range(25):
        cache = BlobCache(tmp_path / str(number))
        try:
            pulled = enginefarm.pull("model", gpu="t4", store=through, cache=cache)
        except EnginefarmError as error:
            outcomes.append(type(error).__name__)
            files = [path for path in cache.root.rglob("*") if path.is_file()]
            assert not any(len(path.name) == 64 for path in files)
        else:
            outcomes.append("pulled")
            assert pulled.path.read_bytes() == engine
    assert "pulled" in outcomes
    assert sum(proxy.done.values()) > 25
    proxy.chance = 0
    for number in range(25):
        cache = BlobCache(tmp_path / str(number))
        pulled = enginefarm.pull("model", gpu="t4", store=through, cache=cache)
        assert pulled.path.read_bytes() == engine


def test_uploads_through_faults_are_whole_or_an_error(
    store: EngineStore, through: EngineStore, proxy: FaultyProxy, tmp_path: Path
) -> None:
    proxy.chance, proxy.faults = 0.15, ("cut", "truncated", "500", "503", "reset")
    stored = 0
    for number in range(12):
        source = tmp_path / str(number)
        source.write_bytes(os.urandom(PIECE))
        try:
            ref = through.put_blob(source)
        except StoreUnavailable:
            continue
        stored += 1
        assert store.read_bytes(ref) == source.read_bytes()
    assert stored > 0


def test_a_cut_download_goes_on_where_it_was(
    store: EngineStore, through: EngineStore, proxy: FaultyProxy, tmp_path: Path
) -> None:
    engine = os.urandom(SIZE)
    ref = publish(store, engine).engine
    cache = BlobCache(tmp_path)
    chance = iter([0.0] * 12)
    choose = proxy._choose
    proxy.faults = ("reset",)

    def fail_after_twelve() -> str:
        proxy.chance = next(chance, 1.0)
        return choose()

    proxy._choose = fail_after_twelve  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        cache.ensure(through, ref)
    assert not cache.has(ref)
    proxy._choose = choose  # type: ignore[method-assign]
    proxy.chance, proxy.served_bytes = 0, 0
    assert cache.ensure(through, ref).read_bytes() == engine
    assert proxy.served_bytes < len(engine) * 0.7
    left = sorted(path.name for path in cache.path(ref).parent.iterdir())
    assert left == [ref.digest, f"{ref.digest}.lock", f"{ref.digest}.seen"]


def test_a_damaged_partial_file_is_started_anew(
    store: EngineStore, through: EngineStore, tmp_path: Path
) -> None:
    engine = os.urandom(SIZE)
    ref = publish(store, engine).engine
    cache = BlobCache(tmp_path)
    path = cache.path(ref)
    path.parent.mkdir(parents=True)
    path.with_name(f"{path.name}.part").write_bytes(b"\0" * SIZE)
    path.with_name(f"{path.name}.pieces").write_text(f"pieces of {PIECE}\n0\n1\n2\n")
    assert cache.ensure(through, ref).read_bytes() == engine


def test_a_stale_listing_gives_an_older_engine_and_never_a_wrong_move(
    store: EngineStore, through: EngineStore, proxy: FaultyProxy, tmp_path: Path
) -> None:
    publish(store, b"v1", graph=b"graph")
    release.promote(through, "model", "production", allow_pending=True)
    assert (
        enginefarm.pull(
            "model@production", gpu="t4", store=through, cache=BlobCache(tmp_path)
        ).path.read_bytes()
        == b"v1"
    )
    proxy.stale = True
    publish(store, b"v2", salt="2", minutes=1)
    release.promote(store, "model", "production", allow_pending=True)
    stale = enginefarm.pull("model@production", gpu="t4", store=through, cache=BlobCache(tmp_path))
    assert stale.path.read_bytes() == b"v1"
    with pytest.raises(StoreConflict):
        release.promote(through, "model", "production", allow_pending=True)
    proxy.stale = False
    fresh = enginefarm.pull("model@production", gpu="t4", store=through, cache=BlobCache(tmp_path))
    assert fresh.path.read_bytes() == b"v2"


def test_two_hundred_pulls_at_once(
    store: EngineStore, through: EngineStore, proxy: FaultyProxy, tmp_path: Path
) -> None:
    engine = os.urandom(2 * PIECE)
    publish(store, engine)
    proxy.chance, proxy.faults = 0.02, ("cut", "truncated", "503", "reset", "slow")

    def pull(number: int) -> bytes:
        cache = BlobCache(tmp_path / str(number % 100))
        return enginefarm.pull("model", gpu="t4", store=through, cache=cache).path.read_bytes()

    logging.getLogger("urllib3").setLevel(logging.ERROR)  # 32 connections serve the 200
    with ThreadPoolExecutor(200) as pool:
        pulled = list(pool.map(pull, range(200)))
    assert pulled.count(engine) == 200


def presigned(store: EngineStore, manifest: Manifest, seconds: int = 60) -> PresignedUrl:
    url = store.objects.presigned_get(layout.blob(manifest.engine), seconds)
    return PresignedUrl(url, manifest.engine, "model.plan")


def test_a_presigned_url_survives_the_network_and_carries_its_digest(
    store: EngineStore, through: EngineStore, proxy: FaultyProxy, tmp_path: Path
) -> None:
    engine = os.urandom(SIZE)
    line = str(presigned(through, publish(store, engine)))
    proxy.chance, proxy.faults = 0.15, ("cut", "500", "reset", "truncated")
    parsed = PresignedUrl.parse(line)
    assert BlobCache(tmp_path).fill(UrlSource(parsed), parsed.ref).read_bytes() == engine


def refusal(capsys: pytest.CaptureFixture[str], line: str) -> tuple[int, str]:
    code = run(["pull", "--url", line])
    return code, capsys.readouterr().err


def test_the_url_command_and_pull_url(
    store_environment: EngineStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host, "first_gpu", lambda: None)
    manifest = publish(store_environment, b"presigned engine")
    assert run(["url", "model", "--gpu", "t4", "--expires-s", "60"]) == 0
    line = capsys.readouterr().out.strip()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "ENGINEFARM_STORE"):
        monkeypatch.delenv(name)
    assert run(["pull", "--url", line, "--dest", str(tmp_path / "a.plan")]) == 0
    assert (tmp_path / "a.plan").read_bytes() == b"presigned engine"
    capsys.readouterr()

    bare, _, fragment = line.partition("#")
    assert refusal(capsys, bare)[0] == 2
    monkeypatch.setenv("ENGINEFARM_CACHE", str(tmp_path / "other"))
    code, said = refusal(capsys, f"{bare[:-4]}0000#{fragment}")
    assert code == 42
    assert "Signature" not in said
    wrong = fragment.replace(manifest.engine.digest, "0" * 64)
    assert refusal(capsys, f"{bare}#{wrong}")[0] == 44


@pytest.mark.parametrize("claimed", [10**18, 2 * PIECE + 1])
def test_a_size_that_the_store_does_not_confirm_lays_nothing_out(
    store: EngineStore, tmp_path: Path, claimed: int
) -> None:
    """A URL's or a manifest's size is anybody's text: no file and no list of pieces of it."""
    manifest = publish(store, b"a small engine")
    url = presigned(store, manifest)
    lying = PresignedUrl(url.url, url.ref.model_copy(update={"size_bytes": claimed}), "model.plan")
    cache = BlobCache(tmp_path)
    with pytest.raises(CorruptBlob, match="14 bytes"):
        cache.fill(UrlSource(lying), lying.ref)
    with pytest.raises(CorruptBlob, match="14 bytes"):
        cache.ensure(store, lying.ref)
    assert not list(tmp_path.rglob("*.part"))


def test_a_document_of_any_size_is_not_read_into_memory(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = publish(store, b"engine")
    monkeypatch.setattr(s3, "MOST_READ_BYTES", 100)
    with pytest.raises(CorruptBlob, match="read into memory"):
        store.manifest(manifest.spec_digest)


def test_urls_are_signed_by_version_4(store: EngineStore) -> None:
    url = presigned(store, publish(store, b"engine")).url
    assert "X-Amz-Algorithm=AWS4-HMAC-SHA256" in url
    assert "AWSAccessKeyId" not in url
