"""What somebody else can put into a cache: it is not waited for, written through, or believed."""

from __future__ import annotations

import fcntl
import io
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sample_manifest import NOON, make_manifest, ref

from enginefarm.documents.manifest import Manifest
from enginefarm.documents.spec import BlobRef
from enginefarm.errors import CorruptBlob, EnginefarmError, SignatureRejected
from enginefarm.pulling import watch
from enginefarm.pulling.catalog import CachedCatalog
from enginefarm.pulling.checks import Fit
from enginefarm.pulling.place import copy_out
from enginefarm.pulling.pull import PulledEngine, fetch
from enginefarm.pulling.select import Candidate
from enginefarm.store import disk, untrusted_files
from enginefarm.store.cache import BlobCache
from enginefarm.store.channels import Revision
from enginefarm.store.prune import SEEN
from enginefarm.store.seen_revisions import SeenRevisions

RIGHT = b"right"
REF = ref(RIGHT)


class Bytes:
    """A source that has these bytes."""

    name = "bytes"

    def __init__(self, data: bytes) -> None:
        self._data = data

    def range(self, start: int, end: int) -> tuple[Any, int]:
        return io.BytesIO(self._data[start:end]), len(self._data)

    def failure(self, error: Exception) -> EnginefarmError:
        raise error


@pytest.fixture
def cache(tmp_path: Path) -> BlobCache:
    return BlobCache(tmp_path / "cache")


@pytest.fixture(autouse=True)
def hangs_are_failures() -> Iterator[None]:
    """A pipe that is waited for is never written to."""

    def hung(*_: object) -> None:
        raise AssertionError("it hangs")

    signal.signal(signal.SIGALRM, hung)
    signal.alarm(10)
    yield
    signal.alarm(0)


def filled(cache: BlobCache) -> Path:
    return cache.fill(Bytes(RIGHT), REF)


def beside(cache: BlobCache, suffix: str) -> Path:
    path = cache.path(REF)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(path.name + suffix)


def test_a_link_in_place_of_a_blob_is_replaced_by_the_blob(
    cache: BlobCache, tmp_path: Path
) -> None:
    """Whoever owns the file behind it may write there at any time."""
    victim = tmp_path / "victim"
    victim.write_bytes(RIGHT)
    beside(cache, "").symlink_to(victim)
    filled(cache)
    assert not cache.path(REF).is_symlink()
    assert victim.read_bytes() == RIGHT


@pytest.mark.parametrize("suffix", [".part", ".pieces"])
@pytest.mark.parametrize("how", [os.symlink, os.link])
def test_a_download_writes_through_no_link(
    cache: BlobCache, tmp_path: Path, suffix: str, how: Callable[[Path, Path], None]
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    how(victim, beside(cache, suffix))
    assert filled(cache).read_bytes() == RIGHT
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("suffix", [".part", ".pieces", SEEN])
def test_a_pipe_beside_a_blob_is_not_waited_for(cache: BlobCache, suffix: str) -> None:
    os.mkfifo(beside(cache, suffix))
    assert filled(cache).read_bytes() == RIGHT
    assert cache.has(REF)


def test_a_pipe_among_the_records_is_not_waited_for(cache: BlobCache) -> None:
    filled(cache)
    made = make_manifest(engine=RIGHT)
    records = CachedCatalog(cache)
    records.remember("model", made, "production", None)
    assert records.manifests("model", "production") == (made,)
    folder = cache.root / "records" / "model"
    for path in folder.iterdir():
        path.unlink()
        os.mkfifo(path)
    with pytest.raises(EnginefarmError, match="no engine"):
        records.manifests("model", "production")
    with pytest.raises(EnginefarmError, match="cannot write"):
        records.remember("model", made, "production", None)


@pytest.mark.parametrize("what", ["memo", "blob"])
@pytest.mark.parametrize("mode", [0o646, 0o664])
def test_a_memo_counts_only_where_nobody_else_could_write_it_and_the_bytes(
    cache: BlobCache, mode: int, what: str
) -> None:
    path = filled(cache)
    memo = path.with_name(path.name + SEEN)

    def forge(of_blob: int, of_memo: int) -> None:
        path.write_bytes(b"wrong")
        path.chmod(of_blob)
        found = path.stat()
        times = f"{found.st_mtime_ns} {found.st_ctime_ns}"
        memo.write_text(f"{REF.digest} {found.st_ino} {found.st_size} {times}")
        memo.chmod(of_memo)

    path.chmod(0o644)
    forge(0o644, 0o644)
    assert cache.has(REF), "only this user and root can have written both"
    forge(*((mode, 0o644) if what == "blob" else (0o644, mode)))
    assert not cache.has(REF)


def test_whose_files_are_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    path.chmod(0o644)
    found = list(path.stat())[:10]
    for owner, believed in ((0, True), (1000, True), (1001, False)):
        found[4] = owner
        monkeypatch.setattr(untrusted_files.os, "geteuid", lambda: 1000)
        assert untrusted_files.is_ours(os.stat_result(found)) is believed


def test_a_memo_of_another_blob_is_not_believed(cache: BlobCache, tmp_path: Path) -> None:
    """Both were hashed; a memo that is moved with its file says nothing of the other name."""
    filled(cache)
    other = tmp_path / "other"
    other.write_bytes(b"wrong")
    wrong = cache.add(other)
    found = cache.path(wrong).stat()
    memo = cache.path(wrong).with_name(wrong.digest + SEEN).read_text()
    cache.path(wrong).replace(cache.path(REF))
    moved = cache.path(REF).stat()
    memo = memo.replace(str(found.st_ctime_ns), str(moved.st_ctime_ns))
    cache.path(REF).with_name(REF.digest + SEEN).write_text(memo)
    assert not cache.has(REF)


def test_a_blob_that_is_replaced_after_it_was_checked_is_not_copied_out(
    cache: BlobCache, tmp_path: Path
) -> None:
    blob = filled(cache)
    blob.chmod(0o644)
    blob.write_bytes(b"wrong")
    dest = tmp_path / "out" / "model.plan"
    with pytest.raises(CorruptBlob, match="not used"):
        copy_out(blob, dest, REF)
    assert list(dest.parent.iterdir()) == []


def test_what_a_killed_pull_left_half_written_is_removed_by_the_next(tmp_path: Path) -> None:
    dest = tmp_path / "model.plan"
    half, young, running, others = (
        tmp_path / f".{name}.part"
        for name in ("model.plan.aaaaaaaa", "model.plan.bbbbbbbb", "model.plan.cccccccc", "other")
    )
    for path in (half, young, running, others):
        path.write_bytes(b"half")
    for path in (half, running, others):
        os.utime(path, (1, 1))
    with running.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        disk.write_atomically(dest, b"whole")
        assert sorted(tmp_path.iterdir()) == sorted([dest, young, running, others])
    disk.write_atomically(dest, b"whole")
    assert not running.exists(), "its process is gone"


def test_two_pulls_of_different_engines_into_one_file_leave_one_of_them_with_its_manifest(
    cache: BlobCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = [b"first engine", b"second engine"]
    for data in engines:
        cache.fill(Bytes(data), ref(data))
    copied: list[bytes] = []
    both, last = threading.Event(), threading.Event()
    copy, write = copy_out, disk.write_atomically

    def copies(blob: Path, dest: Path, of: BlobRef) -> Path:
        copy(blob, dest, of)
        copied.append(of.digest.encode())
        if len(copied) == 2:
            both.set()
        return dest

    def slowly(path: Path, data: bytes) -> None:
        """Whoever wrote its plan first writes its manifest last, if the other is let in."""
        both.wait(0.2)
        if copied[0] in data:
            last.wait(0.2)
        write(path, data)
        last.set()

    monkeypatch.setattr("enginefarm.pulling.place.copy_out", copies)
    monkeypatch.setattr("enginefarm.pulling.place.write_atomically", slowly)
    dest = tmp_path / "model.plan"

    def pull(data: bytes) -> None:
        candidate = Candidate(manifest=make_manifest(engine=data), fit=Fit.EXACT_GPU)
        fetch(candidate, store=None, cache=cache, dest=dest)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(pull, engines))
    said = Manifest.read(dest.with_name("model.plan.json").read_bytes())
    assert said.engine == ref(dest.read_bytes())


def test_two_that_watch_one_folder_never_point_it_at_half_an_engine(
    cache: BlobCache, tmp_path: Path
) -> None:
    folder = tmp_path / "served"

    def pulled(data: bytes) -> PulledEngine:
        made = make_manifest(engine=data)
        candidate = Candidate(manifest=made, fit=Fit.EXACT_GPU)
        return PulledEngine(cache.fill(Bytes(data), made.engine), made, candidate, cached=True)

    engines = [pulled(bytes([number]) * 300_000) for number in range(4)]
    end = time.monotonic() + 0.5

    def swaps(order: list[PulledEngine]) -> None:
        while time.monotonic() < end:
            for one in order:
                watch.swap(one, folder)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(swaps, (engines, engines[::-1])))
    served = (folder / "current").resolve()
    said = Manifest.read((served / watch.MANIFEST).read_bytes())
    assert ref((served / watch.PLAN).read_bytes()) == said.engine


def test_a_served_version_without_its_plan_is_written_again(
    cache: BlobCache, tmp_path: Path
) -> None:
    made = make_manifest(engine=RIGHT)
    pulled = PulledEngine(
        filled(cache), made, Candidate(manifest=made, fit=Fit.EXACT_GPU), cached=True
    )
    assert watch.swap(pulled, tmp_path / "served")
    plan = tmp_path / "served" / "current" / watch.PLAN
    plan.unlink()
    assert watch.swap(pulled, tmp_path / "served")
    assert plan.read_bytes() == RIGHT


def move(number: int, why: str = "") -> Revision:
    return Revision(
        recipe="model",
        channel="production",
        revision=number,
        action="promote",
        engines=(),
        source="newest",
        by="me",
        why=why,
        at=NOON,
    )


@pytest.mark.parametrize("spelling", ["s3://store/farm/", "s3://store//farm", "s3://store/farm"])
def test_a_store_is_remembered_however_its_url_is_written(tmp_path: Path, spelling: str) -> None:
    SeenRevisions(tmp_path).require_no_older("s3://store/farm", move(7))
    with pytest.raises(SignatureRejected, match="gone back"):
        SeenRevisions(tmp_path).require_no_older(spelling, move(6))
    SeenRevisions(tmp_path).require_no_older("s3://store/other", move(6))


def test_of_two_revisions_with_one_number_a_host_takes_the_one_that_it_has_seen(
    tmp_path: Path,
) -> None:
    """Somebody deletes revision 7, the next promotion is 7 again, and now they can be swapped."""
    seen = SeenRevisions(tmp_path)
    seen.require_no_older("s3://store", move(7, "first"))
    seen.require_no_older("s3://store", move(7, "first"))
    with pytest.raises(SignatureRejected, match="not the one that"):
        seen.require_no_older("s3://store", move(7, "second"))
    seen.require_no_older("s3://store", move(8))


def test_notes_of_earlier_versions_still_count(tmp_path: Path) -> None:
    seen = SeenRevisions(tmp_path)
    seen.require_no_older("s3://store", move(7))
    (note,) = (path for path in (tmp_path / "seen").rglob("*") if path.is_file())
    note.write_bytes(b"7")
    with pytest.raises(SignatureRejected, match="gone back"):
        seen.require_no_older("s3://store", move(6))
    seen.require_no_older("s3://store", move(7))


@pytest.mark.parametrize("damage", [b"", b"seven", None])
def test_a_damaged_note_of_the_newest_revision_is_not_taken_for_none(
    tmp_path: Path, damage: bytes | None
) -> None:
    seen = SeenRevisions(tmp_path)
    seen.require_no_older("s3://store", move(7))
    (note,) = (path for path in (tmp_path / "seen").rglob("*") if path.is_file())
    note.unlink()
    if damage is None:
        os.mkfifo(note)
    else:
        note.write_bytes(damage)
    with pytest.raises(SignatureRejected, match="damaged"):
        seen.require_no_older("s3://store", move(3))
