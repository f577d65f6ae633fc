"""The local cache: hashed on use, shared with nobody by inode, kept within its limit."""

from __future__ import annotations

import errno
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier, BrokenBarrierError

import pytest

from enginefarm import cli
from enginefarm.digest import sha256_bytes
from enginefarm.documents.spec import BlobRef
from enginefarm.errors import DiskFull, UsageError
from enginefarm.settings import cache_limit_bytes
from enginefarm.store import cache as cache_module
from enginefarm.store.cache import BlobCache
from enginefarm.store.disk import clone, write_atomically
from enginefarm.store.download import write_whole
from enginefarm.store.prune import SEEN, blobs_of, clean, keep_within


@pytest.fixture
def cache(tmp_path: Path) -> BlobCache:
    return BlobCache(tmp_path / "cache")


def add(cache: BlobCache, folder: Path, data: bytes) -> BlobRef:
    path = folder / sha256_bytes(data)[:8]
    path.write_bytes(data)
    return cache.add(path)


def used(cache: BlobCache, ref: BlobRef, hours_ago: float) -> None:
    at = time.time() - hours_ago * 3600
    for path in (cache.path(ref), cache.path(ref).with_name(ref.digest + SEEN)):
        os.utime(path, (at, at))


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def test_a_file_of_the_right_size_and_other_bytes_is_not_handed_out(
    cache: BlobCache, tmp_path: Path
) -> None:
    ref = add(cache, tmp_path, b"right")
    assert cache.intact(ref) == cache.path(ref)
    overwrite(cache.path(ref), b"wrong")
    assert cache.intact(ref) is None
    assert not cache.path(ref).exists(), "it is removed, so that it is downloaded again"


def test_bytes_that_were_changed_behind_a_memo_of_another_inode_are_seen(
    cache: BlobCache, tmp_path: Path
) -> None:
    ref = add(cache, tmp_path, b"right")
    before = cache.path(ref).stat()
    other = tmp_path / "other"
    other.write_bytes(b"wrong")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(cache.path(ref))
    assert not cache.has(ref)


def test_bytes_that_were_changed_in_place_under_their_old_date_are_seen(
    cache: BlobCache, tmp_path: Path
) -> None:
    ref = add(cache, tmp_path, b"right")
    before = cache.path(ref).stat()
    overwrite(cache.path(ref), b"wrong")
    os.utime(cache.path(ref), ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not cache.has(ref)


@pytest.mark.parametrize("what", ["blob", "memo"])
def test_a_pipe_in_the_cache_is_not_waited_for(cache: BlobCache, tmp_path: Path, what: str) -> None:
    ref = add(cache, tmp_path, b"" if what == "blob" else b"right")
    path = cache.path(ref) if what == "blob" else cache.path(ref).with_name(ref.digest + SEEN)
    path.unlink()
    os.mkfifo(path)
    assert cache.has(ref) == (what == "memo")


def test_a_file_is_hashed_once_while_it_stays_the_same(
    cache: BlobCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = add(cache, tmp_path, b"right")
    monkeypatch.setattr(cache_module, "sha256_file", lambda path: pytest.fail("hashed again"))
    assert cache.has(ref)


def test_a_cache_without_memos_is_hashed(cache: BlobCache, tmp_path: Path) -> None:
    ref = add(cache, tmp_path, b"right")
    cache.path(ref).with_name(ref.digest + SEEN).unlink()
    assert cache.has(ref)
    overwrite(cache.path(ref), b"wrong")
    cache.path(ref).with_name(ref.digest + SEEN).unlink()
    assert not cache.has(ref)


def test_who_holds_the_file_that_was_added_does_not_hold_the_caches(
    cache: BlobCache, tmp_path: Path
) -> None:
    path = tmp_path / "made"
    path.write_bytes(b"right")
    with path.open("r+b") as held:
        ref = cache.add(path)
        held.write(b"wrong")
    assert cache.path(ref).read_bytes() == b"right"
    assert cache.path(ref).stat().st_nlink == 1


def test_of_two_that_add_the_same_bytes_one_keeps_them(
    cache: BlobCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is replaced, even by its like, fails the upload that has begun with it."""
    path = tmp_path / "engine.plan"
    path.write_bytes(b"the same bytes")
    kept: list[Path] = []
    looked, both = Barrier(2), BlobCache.has

    def has(self: BlobCache, ref: BlobRef) -> bool:
        found = both(self, ref)
        with suppress(BrokenBarrierError):
            looked.wait(0.5)  # nobody keeps anything before the other has looked, if it can look
        return found

    keep = BlobCache._keep

    def counted(self: BlobCache, hashed: Path, target: Path) -> None:
        kept.append(target)
        keep(self, hashed, target)

    monkeypatch.setattr(BlobCache, "has", has)
    monkeypatch.setattr(BlobCache, "_keep", counted)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: cache.add(path), range(2))
    assert first == second
    assert kept == [cache.path(first)]


def test_blobs_are_read_only(cache: BlobCache, tmp_path: Path) -> None:
    ref = add(cache, tmp_path, b"right")
    assert stat.S_IMODE(cache.path(ref).stat().st_mode) == 0o444


def test_a_clone_shares_no_inode(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"right")
    clone(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b").write_bytes(b"wrong")
    assert (tmp_path / "a").read_bytes() == b"right"


def test_what_was_used_longest_ago_goes_first(cache: BlobCache, tmp_path: Path) -> None:
    refs = [add(cache, tmp_path, bytes([number]) * 1000) for number in range(5)]
    for hours, ref in zip((50, 40, 30, 20, 0), refs, strict=True):
        used(cache, ref, hours)
    cache.link("model-t4-fp16-0123456789ab.plan", refs[0])
    pruned = keep_within(cache.root, 2500)
    assert (pruned.files, pruned.freed_bytes, pruned.kept_bytes) == (3, 3000, 2000)
    assert [cache.has(ref) for ref in refs] == [True, False, False, False, True], (
        "the newest engine of its name stays, and so does what was just used"
    )


def test_an_older_engine_of_the_same_name_may_go(cache: BlobCache, tmp_path: Path) -> None:
    old, new = (add(cache, tmp_path, bytes([number]) * 1000) for number in range(2))
    first = cache.link("model-t4-fp16-000000000000.plan", old)
    cache.link("model-t4-fp16-111111111111.plan", new)
    os.utime(first, (1, 1), follow_symlinks=False)
    for ref in (old, new):
        used(cache, ref, 50)
    keep_within(cache.root, 0)
    assert [cache.has(old), cache.has(new)] == [False, True]
    clean(cache.root)
    assert [path.name for path in (cache.root / "engines").iterdir()] == [
        "model-t4-fp16-111111111111.plan"
    ]


def test_adding_keeps_the_cache_within_its_limit(
    cache: BlobCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINEFARM_CACHE_LIMIT_GB", "0.0000025")
    for number in range(5):
        used(cache, add(cache, tmp_path, bytes([number]) * 1000), 50 - number)
    assert sum(one.size_bytes for one in blobs_of(cache.root)) <= 3000


def test_what_dead_processes_left_is_cleaned(cache: BlobCache, tmp_path: Path) -> None:
    ref = add(cache, tmp_path, b"right")
    part = cache.path(ref).with_name("0" * 64 + ".part")
    scratch = cache.root / "scratch" / "tmpdead"
    scratch.mkdir(parents=True)
    (scratch / "file").write_bytes(b"x")
    part.write_bytes(b"half")
    assert clean(cache.root) == 0, "a living process may still need it"
    for path in (part, scratch / "file", scratch):
        os.utime(path, (1, 1))
    assert clean(cache.root) == 2
    assert cache.has(ref)


def test_prune_is_a_command(
    cache: BlobCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("ENGINEFARM_CACHE", str(cache.root))
    used(cache, add(cache, tmp_path, b"old"), 50)
    assert cli.run(["cache", "status", "--json"]) == 0
    assert cli.run(["cache", "prune", "--keep-gb", "0"]) == 0
    assert "removed 1 blobs" in capsys.readouterr().out
    assert list(blobs_of(cache.root)) == []


@pytest.mark.parametrize("text", ["much", "-1", "nan", "0", "1e300"])
def test_a_limit_that_is_no_number_is_refused(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINEFARM_CACHE_LIMIT_GB", text)
    with pytest.raises(UsageError, match="ENGINEFARM_CACHE_LIMIT_GB"):
        cache_limit_bytes(tmp_path)


def test_a_write_that_the_kernel_cuts_short_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, bytes(data)[:3], at))
    with (tmp_path / "file").open("wb") as stream:
        write_whole(stream.fileno(), b"0123456789", 0)
    assert (tmp_path / "file").read_bytes() == b"0123456789"
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: 0)
    with pytest.raises(OSError, match="space") as full:
        write_whole(0, b"x", 0)
    assert full.value.errno == errno.ENOSPC


def test_a_full_disk_is_46_and_names_the_folder_at_the_last_step_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match=str(tmp_path)):
        write_atomically(tmp_path / "engine.plan", b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file/engine.plan", "n" * 300, "null\0x"])
def test_a_place_that_cannot_be_written_is_the_users_mistake(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot write"):
        write_atomically(tmp_path / place, b"x")
