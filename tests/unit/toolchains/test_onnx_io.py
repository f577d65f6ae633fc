"""Inputs and outputs of a graph, for toolchains that do not tell."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_onnx
from onnx import TensorProto, helper

from enginefarm.errors import BuildError
from enginefarm.toolchains.onnx_io import onnx_tensors, with_dims


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (TensorProto.FLOAT, "float32"),
        (TensorProto.FLOAT16, "float16"),
        (TensorProto.BFLOAT16, "bfloat16"),
        (TensorProto.INT64, "int64"),
        (TensorProto.BOOL, "bool"),
    ],
)
def test_types_have_our_names(tmp_path: Path, kind: int, dtype: str) -> None:
    value = tiny_onnx.value("x", ["n", 3], kind)
    node = helper.make_node("Identity", ["x"], ["y"])
    out = tiny_onnx.value("y", ["n", 3], kind)
    found = onnx_tensors(tiny_onnx.save(tmp_path / "m.onnx", [node], [value], [out], []))
    assert [(t.name, t.role, t.dtype, t.shape) for t in found] == [
        ("x", "input", dtype, (-1, 3)),
        ("y", "output", dtype, (-1, 3)),
    ]


def test_dynamic_dims_keep_the_names_that_the_graph_has(tmp_path: Path) -> None:
    node = helper.make_node("NonZero", ["x"], ["y"])
    given = tiny_onnx.value("x", ["batch", 3])
    out = tiny_onnx.value("y", [2, None], TensorProto.INT64)
    path = tiny_onnx.save(tmp_path / "m.onnx", [node], [given], [out], [])
    told = onnx_tensors(path)
    assert [t.dims for t in told] == [(), ()], "a toolchain need not tell"
    assert [t.dims for t in with_dims(told, path)] == [("batch", None), (None, None)]


def test_weights_are_no_inputs(tmp_path: Path) -> None:
    assert [t.name for t in onnx_tensors(tiny_onnx.float_gemm(tmp_path / "m.onnx"))] == ["x", "y"]


def test_a_type_that_engines_lack_is_named(tmp_path: Path) -> None:
    value = tiny_onnx.value("words", [1], TensorProto.STRING)
    node = helper.make_node("Identity", ["words"], ["y"])
    out = tiny_onnx.value("y", [1], TensorProto.STRING)
    path = tiny_onnx.save(tmp_path / "m.onnx", [node], [value], [out], [])
    with pytest.raises(BuildError, match="'words': type string"):
        onnx_tensors(path)
