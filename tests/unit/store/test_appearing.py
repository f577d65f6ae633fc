"""Files that a user names as a place to write: replaced whole, and only if they are files."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from enginefarm.errors import UsageError
from enginefarm.store.disk import appearing, write_atomically


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def link(path: Path) -> None:
    """As /dev/stdout is one."""
    os.mkfifo(path.with_name("behind"))
    path.symlink_to("behind")


@pytest.mark.parametrize("make", [pipe, listening, link])
def test_what_is_no_file_is_never_replaced(
    tmp_path: Path, make: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--output /dev/null` as root would leave a machine without it."""
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    place = Path("place")
    make(place)  # type: ignore[operator]
    before = place.lstat()
    with pytest.raises(UsageError, match="disk: cannot write 'place'") as refused:
        write_atomically(place, b"text")
    assert "never replaces" in refused.value.why
    now = place.lstat()
    assert (now.st_ino, stat.S_IFMT(now.st_mode)) == (before.st_ino, stat.S_IFMT(before.st_mode))
    assert not list(tmp_path.glob(".place*"))


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    place = tmp_path / "place"
    write_atomically(place, b"old")
    with suppress(KeyboardInterrupt), appearing(place) as part:
        part.write_bytes(b"half")
        raise KeyboardInterrupt
    assert place.read_bytes() == b"old"
    write_atomically(place, b"new")
    assert place.read_bytes() == b"new"
    assert [one.name for one in tmp_path.iterdir()] == ["place"]


@pytest.mark.parametrize("place", ["file/x", "n" * 300, "folder", "/proc/x"])
def test_a_place_that_cannot_be_written_is_named(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("a file")
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(UsageError, match="disk: cannot write"):
        write_atomically(Path(place), b"text")
    assert Path("file").read_text() == "a file"
