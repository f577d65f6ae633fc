"""The header of a real plan is read in tests/integration/toolchains/test_rtx_builds.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginefarm.errors import PlanDamaged
from enginefarm.host.plan_header import read_plan_header


def made(path: Path, size: int = 1000, mask: int = 0b1010, claimed: int | None = None) -> Path:
    head = bytearray(size)
    head[:4] = head[28:32] = b"vtrt"
    head[16:24] = (size if claimed is None else claimed).to_bytes(8, "little")
    head[24:28] = bytes([1, 7, 1, 116])
    head[32:36] = mask.to_bytes(4, "little")
    path.write_bytes(head)
    return path


def test_version_size_and_capabilities(tmp_path: Path) -> None:
    header = read_plan_header(made(tmp_path / "a.plan"))
    assert header.version == "1.7.1.116"
    assert header.size_bytes == 1000
    assert header.compute_capabilities == ("8.0", "8.9")


def test_a_plan_cut_short_is_seen(tmp_path: Path) -> None:
    with pytest.raises(PlanDamaged, match=r"1000 bytes, but its header says 2000"):
        read_plan_header(made(tmp_path / "a.plan", claimed=2000))


@given(st.binary(max_size=200))
def test_any_other_bytes_are_one_error(tmp_path_factory: pytest.TempPathFactory, b: bytes) -> None:
    path = tmp_path_factory.mktemp("p") / "a.plan"
    path.write_bytes(b)
    with pytest.raises(PlanDamaged):
        read_plan_header(path)
