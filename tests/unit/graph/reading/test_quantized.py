"""Models that are quantized already: as ONNX says, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import toy_graphs
from onnx import TensorProto, helper, numpy_helper
from toy_graphs import run

from enginefarm.errors import SourceError
from enginefarm.graph.model import bounds, onnx_files, walk

RANDOM = np.random.default_rng(3)
INT8, FP8, UINT8 = np.int8(0), "FLOAT8E4M3FN", np.uint8(0)
WEIGHTS = RANDOM.integers(-100, 100, (4, 5))
X = RANDOM.normal(size=(3, 4)).astype(np.float32)
QDQ = (("QuantizeLinear", "x s z q"), ("DequantizeLinear", "q s z d"))


def model(nodes: list[Any], opset: int = 19, output: int = 1, **weights: Any) -> onnx.ModelProto:
    """From float x [n, 4] to y [n, 5]; a node is an operator, its values, and its attributes."""
    made: list[onnx.NodeProto] = []
    for operator, values, *rest in nodes:
        *given, result = values.split()
        more: dict[str, Any] = rest[0] if rest else {}
        made.append(helper.make_node(operator, given, [result], f"make_{result}", **more))
    tensors = [
        one if isinstance(one, TensorProto) else numpy_helper.from_array(np.asarray(one), name)
        for name, one in weights.items()
    ]
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", output, ["n", 5])],
        tensors,
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def exported(folder: Path, made: onnx.ModelProto) -> onnx.ModelProto:
    report = toy_graphs.exported(folder, made)
    found, wanted = (run(path, x=X, plain=True) for path in (report.path, folder / "m.onnx"))
    np.testing.assert_allclose(found["y"], wanted["y"], rtol=1e-6)
    return onnx_files.read(report.path)


def operators(made: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in made.graph.node]


PRODUCT = ("MatMul", "d w y")
FLOATS = {"w": RANDOM.normal(size=(4, 5)).astype(np.float32), "s": np.float32(0.02)}


@pytest.mark.parametrize(
    ("nodes", "weights", "opset"),
    [
        ([*QDQ, PRODUCT], {"z": np.uint8(0)}, 19),
        ([*QDQ, PRODUCT], {"z": np.uint8(128)}, 19),
        ([*QDQ, PRODUCT], {"z": np.int16(0)}, 21),
        # Without a zero point it is uint8, by ONNX; TensorRT makes int8 of it.
        ([("QuantizeLinear", "x s q"), ("DequantizeLinear", "q s d"), PRODUCT], {}, 19),
        (
            [
                ("QuantizeLinear", "x s q", {"output_dtype": TensorProto.UINT8}),
                ("DequantizeLinear", "q s d"),
                PRODUCT,
            ],
            {},
            21,
        ),
    ],
)
def test_what_tensorrt_would_take_for_int8_is_refused(
    tmp_path: Path, nodes: list[Any], weights: dict[str, Any], opset: int
) -> None:
    with pytest.raises(SourceError, match=r"node 'make_q' \(QuantizeLinear\) quantizes") as caught:
        exported(tmp_path, model(nodes, opset, **FLOATS, **weights))
    assert "int8" in caught.value.fix


def test_a_zero_point_that_is_computed_is_looked_at_too(tmp_path: Path) -> None:
    """OnnxSlim makes a constant of it later."""
    nodes = [("Cast", "zi z", {"to": TensorProto.UINT8}), *QDQ, PRODUCT]
    with pytest.raises(SourceError, match="quantizes to uint8"):
        exported(tmp_path, model(nodes, **FLOATS, zi=np.int64(0)))


def test_a_zero_point_that_is_not_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="with a zero point that is not 0"):
        exported(tmp_path, model([*QDQ, PRODUCT], **FLOATS, z=np.int8(3)))


def test_uint8_that_leaves_the_model_is_refused(tmp_path: Path) -> None:
    nodes = [("MatMul", "x w a"), ("QuantizeLinear", "a s z y")]
    with pytest.raises(SourceError, match="'make_y'"):
        exported(tmp_path, model(nodes, output=TensorProto.UINT8, **FLOATS, z=np.uint8(0)))


@pytest.mark.parametrize(
    ("nodes", "weights", "opset"),
    [
        ([*QDQ, PRODUCT], {"z": np.int8(0)}, 19),
        (
            [("QuantizeLinear", "x s q", {"output_dtype": TensorProto.INT8}), QDQ[1], PRODUCT],
            {},
            21,
        ),
    ],
)
def test_symmetric_int8_stays_as_it_is(
    tmp_path: Path, nodes: list[Any], weights: dict[str, Any], opset: int
) -> None:
    more = {**weights, **({} if "z" in weights else {"z": np.int8(0)})}
    made = exported(tmp_path, model(nodes, opset, **FLOATS, **more))
    assert operators(made)[:2] == ["QuantizeLinear", "DequantizeLinear"]


@pytest.mark.parametrize(
    ("stored", "zero", "axis"),
    [
        (np.uint8, 128, 1),
        (np.uint8, None, None),
        (np.int8, 3, 0),
        (np.int32, None, 1),
        (TensorProto.UINT4, 8, 1),
    ],
)
def test_weights_that_tensorrt_cannot_dequantize_are_floats(
    tmp_path: Path, stored: Any, zero: int | None, axis: int | None
) -> None:
    """An int32 bias, as ONNX Runtime's quantizer writes it, and weights with zero points."""
    count = 1 if axis is None else WEIGHTS.shape[axis]
    scale = np.float32(0.01) if axis is None else np.linspace(0.01, 0.02, count, dtype=np.float32)
    if stored == TensorProto.UINT4:
        four = WEIGHTS % 16
        weights: dict[str, Any] = {"k": helper.make_tensor("k", stored, four.shape, four.ravel())}
        weights["kz"] = helper.make_tensor("kz", stored, [count], [zero] * count)
    else:
        weights = {"k": WEIGHTS.astype(stored)}
        if zero is not None:
            weights["kz"] = np.full(count, zero, stored)
    given = "k ks kz dk" if zero is not None else "k ks dk"
    more = {} if axis is None else {"axis": axis}
    nodes = [("DequantizeLinear", given, more), ("MatMul", "x dk y")]
    made = exported(tmp_path, model(nodes, 21, ks=scale, **weights))
    assert operators(made) == ["MatMul"]
    assert [tensor.data_type for tensor in made.graph.initializer] == [TensorProto.FLOAT]


def test_weights_that_onnx_cannot_dequantize_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A type that its reference lacks; TensorRT would compute with other numbers."""
    monkeypatch.setattr(bounds, "computed", lambda *_: None)
    nodes = [("DequantizeLinear", "k ks dk"), ("MatMul", "x dk y")]
    made = model(nodes, 21, k=WEIGHTS.astype(np.uint8), ks=np.float32(0.01))
    with pytest.raises(SourceError, match=r"'make_dk' \(DequantizeLinear\) quantizes to uint8"):
        exported(tmp_path, made)


def test_weights_in_a_branch_are_floats_too(tmp_path: Path) -> None:
    names = ("k", "ks", "kz", "b", "bs")
    made = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 19]>
        agraph (float[n, 4] x) => (float[n, 5] y) {
            s = ReduceSum <keepdims = 0> (x)
            c = Greater (s, zero)
            db = DequantizeLinear (b, bs)
            h = If (c) <
                then_branch = one () => (float[n, 5] t) {
                    dk = DequantizeLinear (k, ks, kz) t = MatMul (x, dk)
                },
                else_branch = other () => (float[n, 5] e) {
                    dl = DequantizeLinear (k, ks, kz) m = MatMul (x, dl) e = Neg (m)
                }>
            y = Add (h, db)
        }"""
    )
    values = (WEIGHTS.astype(np.int8), np.float32(0.01), np.int8(3), np.int32(70), np.float32(0.1))
    pairs = [*zip(names, values, strict=True), ("zero", np.float32(0))]
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), n) for n, v in pairs)
    read = exported(tmp_path, made)
    found = [node.op_type for graph in walk.graphs(read.graph) for node in graph.node]
    assert "DequantizeLinear" not in found


def test_weights_of_int8_stay_int8(tmp_path: Path) -> None:
    nodes = [("DequantizeLinear", "k ks kz dk", {"axis": -1}), ("MatMul", "x dk y")]
    scales = np.linspace(0.01, 0.02, 5, dtype=np.float32)
    made = exported(
        tmp_path, model(nodes, k=WEIGHTS.astype(np.int8), ks=scales, kz=np.zeros(5, np.int8))
    )
    assert operators(made) == ["DequantizeLinear", "MatMul"]


def test_weights_with_a_scale_for_each_row_run(tmp_path: Path) -> None:
    """An optimization of ONNX Runtime makes an operator of it that cannot run."""
    nodes = [*QDQ, ("DequantizeLinear", "k ks kz dk", {"axis": 0}), ("MatMul", "d dk y")]
    scales = np.linspace(0.01, 0.02, 4, dtype=np.float32)
    more = {"k": WEIGHTS.astype(np.int8), "ks": scales, "kz": np.zeros(4, np.int8)}
    exported(tmp_path, model(nodes, s=np.float32(0.02), z=np.int8(0), **more))
