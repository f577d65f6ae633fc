"""Temporary folders of workers that were killed are removed; those of the living are not."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from enginefarm.farm.worker import serve


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def gone() -> int:
    """The id of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        return process.pid


def test_a_worker_has_a_folder_of_its_own_and_so_have_its_children(temporary: Path) -> None:
    with serve.private_tmpdir() as folder:
        assert Path(tempfile.mkdtemp()).parent == folder
        assert os.environ["TMPDIR"] == str(folder)
    assert list(temporary.iterdir()) == []
    assert tempfile.gettempdir() == str(temporary)


def test_what_a_killed_worker_left_goes_with_the_next_start(temporary: Path) -> None:
    left = temporary / f"{serve.TMP_PREFIX}{gone()}-abc"
    (left / "run").mkdir(parents=True)
    (left / "run" / "model.onnx").write_bytes(b"much")
    alive = temporary / f"{serve.TMP_PREFIX}{os.getppid()}-abc"
    others = temporary / f"{serve.TMP_PREFIX}notes"
    for folder in (alive, others):
        folder.mkdir()
    with serve.private_tmpdir():
        assert not left.exists()
        assert alive.exists()
        assert others.exists()
