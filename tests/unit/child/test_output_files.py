"""What a hostile child leaves in its folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from enginefarm.child import output_files


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


LEFT: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a link out": lambda path: path.symlink_to("/etc/hostname"),
}


@pytest.mark.parametrize("kind", LEFT)
def test_what_is_no_file_of_its_own_is_not_taken(tmp_path: Path, kind: str) -> None:
    LEFT[kind](tmp_path / "made")
    assert not output_files.is_own(tmp_path / "made", tmp_path)
    if kind != "a link out":
        assert output_files.text(tmp_path / "made") == ""


def test_a_file_of_its_own_is_read_from_its_end(tmp_path: Path) -> None:
    (made := tmp_path / "made").write_text("one two")
    assert output_files.is_own(made, tmp_path)
    assert output_files.text(made) == "one two"
    assert output_files.text(made, 3) == "two"
    sparse(made)
    assert output_files.text(made, 3) == "\0\0\0"
