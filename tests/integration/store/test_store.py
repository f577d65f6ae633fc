"""The engine store against a real S3 server (SeaweedFS)."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
from sample_manifest import make_manifest, ref

from enginefarm.documents.stage import StageRecord
from enginefarm.errors import (
    CorruptBlob,
    DiskFull,
    StoreConflict,
    StoreDenied,
    StoreMissing,
    StoreUnavailable,
)
from enginefarm.progress import SINK
from enginefarm.store import blobs, embedded, layout, open_store, s3, transfers
from enginefarm.store.cache import BlobCache
from enginefarm.store.client import Patience
from enginefarm.store.embedded import Server
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.s3 import Credentials, ObjectStore
from enginefarm.store.weed import ports_of

MULTIPART_BYTES = transfers.PART_BYTES * 2 + 12345


def write(path: Path, size: int) -> Path:
    path.write_bytes(os.urandom(size))
    return path


def publish(store: EngineStore, **changes: object) -> bool:
    manifest = make_manifest(**changes)  # type: ignore[arg-type]
    store.put_bytes(b"engine")
    store.put_bytes(b"graph")
    return store.publish(manifest)


class Counted:
    """Counts the requests of a store."""

    def __init__(self, store: EngineStore) -> None:
        self.calls: list[str] = []
        store.objects.client.meta.events.register("before-send.s3.*", self._note)

    def _note(self, request: object, event_name: str, **_: object) -> None:
        self.calls.append(event_name.rpartition(".")[2])


@pytest.mark.parametrize("size", [0, 1, 1 << 20, MULTIPART_BYTES])
def test_a_blob_comes_back_byte_for_byte(store: EngineStore, tmp_path: Path, size: int) -> None:
    source = write(tmp_path / "in", size)
    stored = store.put_blob(source)
    back = store.fetch_blob(stored, tmp_path / "out")
    assert back.read_bytes() == source.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}


def test_a_blob_is_uploaded_once(store: EngineStore, tmp_path: Path) -> None:
    source = write(tmp_path / "in", 1000)
    store.put_blob(source)
    counted = Counted(store)
    store.put_blob(source)
    assert counted.calls == ["HeadObject"]


def test_progress_of_both_ways_ends_at_the_size(store: EngineStore, tmp_path: Path) -> None:
    seen: dict[str, list[float]] = {"upload": [], "download": []}
    token = SINK.set(lambda step, done, total, note="": seen[step].append(done))
    try:
        stored = store.put_blob(write(tmp_path / "in", MULTIPART_BYTES))
        store.fetch_blob(stored, tmp_path / "out")
    finally:
        SINK.reset(token)
    for values in seen.values():
        assert values == sorted(values)
        assert values[-1] == MULTIPART_BYTES


@pytest.mark.parametrize("size", [1000, MULTIPART_BYTES])
def test_an_overwritten_blob_is_refused_and_healed_by_the_next_upload(
    store: EngineStore, tmp_path: Path, size: int
) -> None:
    source = write(tmp_path / "in", size)
    stored = store.put_blob(source)
    store.objects.put(layout.blob(stored), os.urandom(size))
    with pytest.raises(CorruptBlob, match=stored.digest[:12]):
        store.fetch_blob(stored, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not store.has_blob(stored)
    store.put_blob(source)
    assert store.fetch_blob(stored, tmp_path / "out").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("size", [500, 1500])
def test_a_blob_of_the_wrong_size_is_refused(store: EngineStore, tmp_path: Path, size: int) -> None:
    stored = store.put_blob(write(tmp_path / "in", 1000))
    store.objects.put(layout.blob(stored), os.urandom(size))
    with pytest.raises(CorruptBlob):
        store.fetch_blob(stored, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_small_bytes_are_checked_too(store: EngineStore) -> None:
    stored = store.put_bytes(b"hello")
    assert store.read_bytes(stored) == b"hello"
    store.objects.put(layout.blob(stored), b"jello")
    with pytest.raises(CorruptBlob):
        store.read_bytes(stored)
    with pytest.raises(CorruptBlob, match="at most 4"):
        store.read_bytes(stored, limit_bytes=4)


def test_a_blob_that_is_not_there(store: EngineStore, tmp_path: Path) -> None:
    with pytest.raises(StoreMissing):
        store.fetch_blob(ref(b"nowhere"), tmp_path / "out")
    with pytest.raises(StoreMissing):
        store.read_bytes(ref(b"nowhere"))
    assert list(tmp_path.iterdir()) == []


def test_the_server_itself_refuses_bytes_that_do_not_match_their_checksum(
    store: EngineStore,
) -> None:
    with pytest.raises(Exception, match=r"BadDigest|400"):
        store.objects.put("x", b"data", ChecksumSHA256="A" * 43 + "=")


def test_a_used_blob_is_dated_anew_so_that_gc_leaves_it(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = store.put_bytes(b"old")
    before = store.objects.head(layout.blob(stored))
    monkeypatch.setattr(blobs, "TOUCH_AFTER", blobs.timedelta(0))
    time.sleep(1.1)
    store.put_bytes(b"old")
    after = store.objects.head(layout.blob(stored))
    assert before is not None
    assert after is not None
    assert after.modified > before.modified
    assert store.has_blob(stored)


def test_a_manifest_is_found_only_once_it_is_published(store: EngineStore) -> None:
    manifest = make_manifest()
    assert store.manifest(manifest.spec_digest) is None
    assert publish(store)
    assert store.manifest(manifest.spec_digest) == manifest
    assert store.complete("model") == {manifest.spec_digest}
    assert list(store.manifests("model")) == [manifest]
    assert store.recipes() == ("model",)


def test_a_manifest_whose_engine_is_not_there_is_not_published(store: EngineStore) -> None:
    with pytest.raises(StoreMissing):
        store.publish(make_manifest())
    assert store.complete("model") == frozenset()


def test_of_sixteen_publishers_one_wins(store: EngineStore) -> None:
    store.put_bytes(b"engine")
    store.put_bytes(b"graph")
    racing = [make_manifest(minutes=minute) for minute in range(16)]
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(store.publish, racing))
    assert won.count(True) == 1
    assert store.manifest(racing[0].spec_digest) == racing[won.index(True)]


def test_a_publisher_that_died_before_the_index_is_healed_by_the_next(store: EngineStore) -> None:
    publish(store)
    (entry,) = store.index("model")
    store.objects.delete(layout.index(entry))
    assert store.complete("model") == frozenset()
    assert not publish(store)
    assert store.complete("model") == {entry.spec_digest}


def test_filters(store: EngineStore) -> None:
    for label in ("t4", "a100"):
        for precision in ("fp16", "int8"):
            publish(store, label=label, precision=precision)
    publish(store, recipe="model-2")
    assert len(list(store.manifests())) == 5
    assert {one.gpu for one in store.manifests("model", gpu="a100")} == {"a100"}
    assert {one.precision for one in store.manifests("model", precision="int8")} == {"int8"}
    assert store.recipes() == ("model", "model-2")


def test_a_manifest_of_another_spec_or_of_nonsense_is_refused(store: EngineStore) -> None:
    manifest, other = make_manifest(), make_manifest(salt="other")
    store.objects.put(layout.manifest(manifest.spec_digest), other.canonical_json())
    with pytest.raises(CorruptBlob, match="another spec"):
        store.manifest(manifest.spec_digest)
    store.objects.put(layout.manifest(manifest.spec_digest), b'{"recipe": 3}')
    with pytest.raises(CorruptBlob, match="not a valid Manifest"):
        store.manifest(manifest.spec_digest)


def test_a_long_listing_is_paged_and_asked_for_once(store: EngineStore) -> None:
    digests = {f"{number:064x}" for number in range(2500)}
    with ThreadPoolExecutor(32) as pool:
        list(
            pool.map(
                lambda digest: store.objects.put(
                    layout.index(layout.IndexEntry("model", "t4", "fp16", digest)), b""
                ),
                digests,
            )
        )
    counted = Counted(store)
    assert store.complete("model") == digests
    assert counted.calls == ["ListObjectsV2"] * 3


def test_stages(store: EngineStore) -> None:
    record = StageRecord(
        stage="export",
        key="ab" * 32,
        outputs={"model": ref(b"x")},
        values={"opset": 20},
        seconds=1.5,
        created_at=datetime.now(UTC),
    )
    assert store.stage("export", record.key) is None
    store.put_stage(record)
    assert store.stage("export", record.key) == record


def test_documents_change_by_compare_and_swap(store: EngineStore) -> None:
    objects = store.objects
    etag = objects.put_if_absent("channels/x.json", b"1")
    assert etag is not None
    assert objects.put_if_absent("channels/x.json", b"2") is None
    newer = objects.put_if_match("channels/x.json", b"2", etag)
    with pytest.raises(StoreConflict):
        objects.put_if_match("channels/x.json", b"3", etag)
    assert objects.get("channels/x.json") == (b"2", newer)
    objects.delete("channels/x.json")
    with pytest.raises(StoreConflict):
        objects.put_if_match("channels/x.json", b"4", newer)


# What goes wrong


def connect(server: Server, bucket: str = embedded.BUCKET, **changes: object) -> ObjectStore:
    options: dict[str, object] = {
        "endpoint": server.endpoint,
        "credentials": server.credentials,
        **changes,
    }
    return s3.connect(f"s3://{bucket}/x", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("part", ["access_key", "secret_key"])
def test_a_wrong_key_is_denied_and_not_repeated(s3_server: Server, part: str) -> None:
    right = {
        "access_key": s3_server.credentials.access_key,
        "secret_key": s3_server.credentials.secret_key,
    }
    wrong = Credentials(**{**right, part: "wrong-key-0123456789"})
    store = EngineStore(connect(s3_server, credentials=wrong), "s3://x")
    for call in (lambda: store.complete("m"), lambda: store.put_bytes(b"x"), store.require_bucket):
        with pytest.raises(StoreDenied) as caught:
            call()
        assert "wrong-key" not in str(caught.value)
        assert right["secret_key"] not in str(caught.value)


def test_no_key_at_all_says_which_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreDenied, match="no credentials") as caught:
        open_store("s3://engines").recipes()
    assert "AWS_ACCESS_KEY_ID" in caught.value.fix


def test_a_bucket_that_is_not_there_is_named(s3_server: Server) -> None:
    store = EngineStore(connect(s3_server, bucket="nowhere"), "s3://nowhere")
    for call in (lambda: store.complete("m"), lambda: store.put_bytes(b"x"), store.require_bucket):
        with pytest.raises(StoreMissing, match="nowhere"):
            call()


def test_a_store_that_is_down(s3_server: Server, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    store = EngineStore(connect(s3_server, endpoint=endpoint, patience=Patience(2)), "s3://x")
    for call in (
        lambda: store.complete("m"),
        lambda: store.put_blob(write(tmp_path / "in", 10)),
        lambda: store.fetch_blob(ref(b"x"), tmp_path / "out"),
    ):
        with pytest.raises(StoreUnavailable) as caught:
            call()
        assert caught.value.transient
    assert not (tmp_path / "out").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 4 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("size", [6 << 20, MULTIPART_BYTES])
def test_a_full_disk_leaves_nothing_behind(
    store: EngineStore, tmp_path: Path, small_disk: Path, size: int
) -> None:
    stored = store.put_blob(write(tmp_path / "in", size))
    with pytest.raises(DiskFull, match="no room"):
        store.fetch_blob(stored, small_disk / "model.plan")
    assert list(small_disk.iterdir()) == []
    with pytest.raises(DiskFull):
        BlobCache(small_disk / "cache").ensure(store, stored)
    left = [path for path in small_disk.rglob("*") if path.is_file() and path.stat().st_size]
    assert left == []


PULL_UNDER_A_FILE_SIZE_LIMIT = """
import resource, sys
from pathlib import Path
from enginefarm.errors import DiskFull
from enginefarm.documents.spec import BlobRef
from enginefarm.store import open_store
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    open_store().fetch_blob(BlobRef(digest=sys.argv[1], size_bytes=int(sys.argv[2])),
                            Path(sys.argv[3]))
except DiskFull as error:
    print(error)
    sys.exit(error.exit_code)
"""


def test_a_quota_counts_as_a_full_disk(store_environment: EngineStore, tmp_path: Path) -> None:
    stored = store_environment.put_blob(write(tmp_path / "in", 1_000_000))
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            PULL_UNDER_A_FILE_SIZE_LIMIT,
            stored.digest,
            str(stored.size_bytes),
            str(tmp_path / "out"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == DiskFull.exit_code, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_file_that_changes_while_it_is_uploaded_is_not_kept(
    store: EngineStore, tmp_path: Path
) -> None:
    source = write(tmp_path / "in", MULTIPART_BYTES)
    changed = False

    def change(step: str, done: float, total: float | None, note: str = "") -> None:
        nonlocal changed
        if not changed:
            changed = True
            with source.open("r+b") as stream:
                stream.seek(-1, os.SEEK_END)
                stream.write(b"!")

    token = SINK.set(change)
    try:
        with pytest.raises(StoreConflict, match="changed"):
            store.put_blob(source)
    finally:
        SINK.reset(token)
    assert list(store.objects.list(layout.BLOBS)) == []


def test_memory_stays_small_while_a_large_blob_streams(
    store_environment: EngineStore, tmp_path: Path
) -> None:
    size = 200 << 20
    stored = store_environment.put_blob(write(tmp_path / "in", size))
    code = (
        "from pathlib import Path\n"
        "from enginefarm.documents.spec import BlobRef\nfrom enginefarm.store import open_store\n"
        f"ref = BlobRef(digest='{stored.digest}', size_bytes={size})\n"
        f"open_store().fetch_blob(ref, Path('{tmp_path / 'out'}'))\n"
        # Not ru_maxrss: that one counts the parent before exec.
        "status = Path('/proc/self/status').read_text()\n"
        "print(status.split('VmHWM:')[1].split()[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peak_mb = int(done.stdout) / 1000
    assert peak_mb < 130, f"{peak_mb:.0f} MB for a blob of {size / 1e6:.0f} MB"


# The embedded server


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "home" / "store"
    yield folder
    embedded.stop(folder)


def test_the_embedded_server_is_started_once_and_keeps_its_data(home: Path) -> None:
    url = f"embedded://{home}"
    code = f"from enginefarm.store import open_store; print(open_store('{url}').put_bytes(b'x'))"
    with ThreadPoolExecutor(4) as pool:
        runs = list(
            pool.map(
                lambda _: subprocess.run([sys.executable, "-c", code], capture_output=True), "abcd"
            )
        )
    assert [run.returncode for run in runs] == [0] * 4, runs
    first = embedded.running(home)
    assert first is not None, "it must outlive the process that started it"
    started = time.perf_counter()
    store = open_store(url)
    assert time.perf_counter() - started < 1.0
    assert store.read_bytes(ref(b"x")) == b"x"
    assert store.url == url
    assert embedded.stop(home)
    assert embedded.running(home) is None
    assert open_store(url).read_bytes(ref(b"x")) == b"x"
    second = embedded.running(home)
    assert second is not None
    assert second.credentials == first.credentials
    assert second.credentials.secret_key not in repr(second)


def test_a_killed_server_is_replaced(home: Path) -> None:
    first = embedded.start(home)
    EngineStore(connect(first), "").put_bytes(b"kept")
    os.kill(first.pid, signal.SIGKILL)
    time.sleep(0.2)
    second = embedded.start(home)
    assert second.pid != first.pid
    assert EngineStore(connect(second), "").read_bytes(ref(b"kept")) == b"kept"


@pytest.mark.parametrize("number", [0, 1, 5])
def test_a_port_that_is_taken_while_the_server_starts_is_replaced(
    home: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    others: list[socket.socket] = []

    def choose_and_lose(folder: Path) -> list[int]:
        chosen = ports_of(folder)
        if not others:
            others.append(socket.create_server(("127.0.0.1", chosen[number])))
        return chosen

    monkeypatch.setattr(embedded, "ports_of", choose_and_lose)
    server = embedded.start(home)
    assert embedded.running(home) == server
    with others[0]:
        assert others[0].getsockname()[1] not in json.loads((home / "ports.json").read_text())


def test_a_server_that_cannot_start_says_why(home: Path) -> None:
    (home / "data").mkdir(parents=True)
    (home / "data" / "filerldb2").write_text("not a folder")
    with pytest.raises(StoreUnavailable, match="filerldb2") as caught:
        embedded.start(home)
    assert "goroutine" not in str(caught.value)


def test_the_embedded_server_is_the_users_alone(home: Path) -> None:
    server = embedded.start(home)
    sockets = psutil.Process(server.pid).net_connections("tcp")
    addresses = [one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN]
    assert len(addresses) >= 5
    assert set(addresses) == {"127.0.0.1"}
    assert (home / "credentials.json").stat().st_mode & 0o077 == 0
    assert home.stat().st_mode & 0o077 == 0
    command = Path(f"/proc/{server.pid}/cmdline").read_bytes()
    assert server.credentials.secret_key.encode() not in command


def test_a_folder_that_cannot_be_written_says_what_to_set(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="cannot write") as caught:
        embedded.start(tmp_path / "file" / "store")
    assert "ENGINEFARM_HOME" in caught.value.fix
