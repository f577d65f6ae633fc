"""Arrays that `enginefarm run --input` names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sample_manifest import make_manifest

from enginefarm.errors import UsageError
from enginefarm.run.inputs import read_feeds


@pytest.mark.parametrize(
    "header", ["{'descr': '<f4', 'shape': (", "-" * 9000 + "1", "\0" * 9, "not a dict"]
)
def test_a_damaged_array_is_one_error(tmp_path: Path, header: str) -> None:
    file = tmp_path / "x.npy"
    length = len(header).to_bytes(2, "little")
    file.write_bytes(b"\x93NUMPY\x01\x00" + length + header.encode() + bytes(40))
    with pytest.raises(UsageError, match="cannot be read") as caught:
        read_feeds([str(file)], make_manifest())
    assert caught.value.why


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.npy")
    with pytest.raises(UsageError, match="cannot be read") as caught:
        read_feeds([str(tmp_path / "x.npy")], make_manifest())
    assert "not a regular file" in caught.value.why
