"""A .pt2 is an archive with pickles in it: it is searched before torch loads it."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from enginefarm.documents.recipe import ExportedProgramSource
from enginefarm.errors import SourceError, UnsafeCheckpointError
from enginefarm.graph.sources import source

SOURCE = ExportedProgramSource(kind="exported_program", path="model.pt2")


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).repeat(2, 1)[: x.shape[0] * 2 - 1]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt2"
    batch = torch.export.Dim("batch", min=2, max=8)
    made = torch.export.export(Model().eval(), (torch.randn(3, 4),), dynamic_shapes=({0: batch},))
    torch.export.save(made, path)
    return path


def rewrite(path: Path, change: Callable[[str, bytes], bytes], extra: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    top = next(iter(members)).partition("/")[0]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, change(name, data))
        for name, data in extra.items():
            archive.writestr(f"{top}/{name}", data)


def load(tmp_path: Path) -> Any:
    return source("exported_program").load(SOURCE, tmp_path, tmp_path)


def test_a_program_with_dynamic_shapes_loads(program: Path, tmp_path: Path) -> None:
    module = load(tmp_path).module()
    assert module(torch.ones(5, 4)).shape == (9, 2)


def test_a_pickled_object_is_refused(program: Path, tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    rewrite(
        program,
        lambda name, data: data,
        {"data/constants/opaque_obj_0": pickle.dumps(Touch(proof))},
    )
    with pytest.raises(UnsafeCheckpointError, match="opaque_obj_0"):
        load(tmp_path)
    assert not proof.exists()


def test_pickled_sample_inputs_that_run_code_are_refused(program: Path, tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    evil = tmp_path / "evil.pt"
    torch.save(Touch(proof), evil)
    swapped = evil.read_bytes()
    rewrite(
        program,
        lambda name, data: swapped if name.endswith("sample_inputs/model.pt") else data,
        {},
    )
    with pytest.raises(UnsafeCheckpointError, match="weights_only"):
        load(tmp_path)
    assert not proof.exists()


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "Add(\\\"__import__('os')\\\", 1)",
        "Symbol('s0').__class__",
        "[1 for _ in (1,)]",
        "open('x', 'w')",
    ],
)
def test_a_shape_expression_that_is_not_arithmetic_is_refused(
    program: Path, tmp_path: Path, expression: str
) -> None:
    found = []

    def change(name: str, data: bytes) -> bytes:
        text = b"Symbol('s"
        if name.endswith("models/model.json") and text in data:
            found.append(name)
            start = data.index(b'"expr_str": "') + len(b'"expr_str": "')
            end = data.index(b'"', start)
            return data[:start] + expression.encode() + data[end:]
        return data

    rewrite(program, change, {})
    assert found, "or the test proves nothing"
    with pytest.raises(UnsafeCheckpointError, match="not arithmetic"):
        load(tmp_path)


@pytest.mark.parametrize("data", [b"not a zip", b"PK\x03\x04 and no more"])
def test_a_file_that_is_no_program(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.pt2").write_bytes(data)
    with pytest.raises(SourceError, match=r"source\.path: model\.pt2: not a \.pt2 file"):
        load(tmp_path)
