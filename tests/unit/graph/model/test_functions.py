"""Local functions of ONNX files: written into the graph as they are read, within limits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from enginefarm.errors import SourceError
from enginefarm.graph.model import functions, onnx_files

DOMAIN, OPSET = "local", 20


def function(name: str, nodes: Sequence[onnx.NodeProto], *, opset: int = OPSET) -> Any:
    versions = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_function(DOMAIN, name, ["a"], ["b"], nodes, versions)


def call(name: str, source: str, result: str) -> onnx.NodeProto:
    return helper.make_node(name, [source], [result], f"call_{result}", domain=DOMAIN)


def save(path: Path, nodes: Sequence[onnx.NodeProto], made: Sequence[Any]) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
    )
    model = helper.make_model(
        graph,
        functions=list(made),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
        ir_version=10,
    )
    path.write_bytes(model.SerializeToString())
    return path


def doubling(count: int) -> list[Any]:
    """F0 calls F1 twice, which calls F2 twice, and so on: 2**count nodes."""
    pairs = [[call(f"F{i + 1}", "a", "t"), call(f"F{i + 1}", "t", "b")] for i in range(count)]
    made = [function(f"F{i}", nodes) for i, nodes in enumerate(pairs)]
    return [*made, function(f"F{count}", [helper.make_node("Relu", ["a"], ["b"])])]


def chain(count: int) -> list[Any]:
    """F0 calls F1, which calls F2, and so on: one node, `count` deep."""
    made = [function(f"F{i}", [call(f"F{i + 1}", "a", "b")]) for i in range(count)]
    return [*made, function(f"F{count}", [helper.make_node("Relu", ["a"], ["b"])])]


@pytest.mark.parametrize(("count", "said"), [(40, "1099511627776 nodes"), (99, "more than 10")])
def test_functions_that_stand_for_too_many_nodes_are_counted_and_refused(
    tmp_path: Path, count: int, said: str
) -> None:
    path = save(tmp_path / "m.onnx", [call("F0", "x", "y")], doubling(count))
    started = time.monotonic()
    with pytest.raises(SourceError, match=f"{said}.* over the limit of 1000000") as caught:
        onnx_files.read(path)
    assert time.monotonic() - started < 5
    assert "function 'F0' stands for" in caught.value.why


def test_calls_in_bodies_of_bodies_count_too(tmp_path: Path) -> None:
    body = helper.make_graph(
        [call("F0", "x", "t")],
        "body",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, ["n", 4])],
    )
    condition = helper.make_node(
        "Constant", [], ["c"], value=numpy_helper.from_array(np.array(True), "v")
    )
    branch = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    path = save(tmp_path / "m.onnx", [condition, branch], doubling(30))
    with pytest.raises(SourceError, match=f"{2 * 2**30 + 2} nodes"):
        onnx_files.read(path)


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        ({"F0": "F0"}, "'F0' calls 'F0'"),
        ({"F0": "F1", "F1": "F2", "F2": "F1"}, "'F1' calls 'F2' calls 'F1'"),
    ],
)
def test_functions_that_call_themselves_are_named(
    tmp_path: Path, calls: dict[str, str], said: str
) -> None:
    made = [function(name, [call(inner, "a", "b")]) for name, inner in calls.items()]
    path = save(tmp_path / "m.onnx", [call("F0", "x", "y")], made)
    with pytest.raises(SourceError, match="calls itself") as caught:
        onnx_files.read(path)
    assert caught.value.why == said


@pytest.mark.parametrize("first", ["F0", "F149"])
def test_functions_inside_functions_have_a_depth(tmp_path: Path, first: str) -> None:
    """Also where calls further down were counted first."""
    made = chain(150)
    calls = [call("F100", "x", "t"), call(first, "t", "u"), call("F50", "u", "v")]
    path = save(tmp_path / "m.onnx", [*calls, call("F0", "v", "y")], made)
    with pytest.raises(SourceError, match="functions call functions more than 100 deep"):
        onnx_files.read(path)


def test_constants_that_calls_repeat_are_counted_in_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions, "LIMIT_BYTES", 1 << 20)
    weight = numpy_helper.from_array(np.zeros((1 << 14, 4), np.float32), "v")
    nodes = [
        helper.make_node("Constant", [], ["k"], value=weight),
        helper.make_node("ReduceMax", ["k"], ["m"], keepdims=0),
        helper.make_node("Add", ["a", "m"], ["b"]),
    ]
    calls = [call("F", "x" if i == 0 else f"t{i}", f"t{i + 1}") for i in range(9)]
    path = save(tmp_path / "m.onnx", [*calls, call("F", "t9", "y")], [function("F", nodes)])
    with pytest.raises(SourceError, match="bytes with its functions written out is over the limit"):
        onnx_files.read(path)


def test_weights_inside_functions_are_read_as_all_others_are(tmp_path: Path) -> None:
    """A function's external data would be opened by whoever runs the graph."""
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    weight = numpy_helper.from_array(np.zeros((4, 4), np.float32), "v")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret.bin")
    nodes = [
        helper.make_node("Constant", [], ["k"], value=weight),
        helper.make_node("MatMul", ["a", "k"], ["b"]),
    ]
    folder = tmp_path / "models"
    folder.mkdir()
    path = save(folder / "m.onnx", [call("F", "x", "y")], [function("F", nodes)])
    with pytest.raises(SourceError, match=r"keeps its data in '\.\./secret\.bin'"):
        onnx_files.read(path)


@pytest.mark.parametrize("opset", [13, OPSET])
def test_written_out_they_compute_the_same(tmp_path: Path, opset: int) -> None:
    nodes = [helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Neg", ["r"], ["b"])]
    calls = [call("F", "x", "t"), call("F", "t", "y")]
    made = function("F", nodes, opset=opset)
    read = onnx_files.read(save(tmp_path / "m.onnx", calls, [made]))
    assert [node.op_type for node in read.graph.node] == ["Relu", "Neg", "Relu", "Neg"]
    assert not read.functions
    x = np.array([[1, -2, 3, -4]], np.float32)
    session = onnxruntime.InferenceSession(read.SerializeToString())
    np.testing.assert_array_equal(session.run(["y"], {"x": x})[0], -np.maximum(-x.clip(0), 0))


def test_a_function_that_cannot_be_converted_stays(tmp_path: Path) -> None:
    made = function("F", [helper.make_node("Resize", ["a"], ["b"])], opset=10)
    read = onnx_files.read(save(tmp_path / "m.onnx", [call("F", "x", "y")], [made]))
    assert [one.name for one in read.functions] == ["F"]


def field(number: int, content: bytes) -> bytes:
    """One field of a message, as protobuf writes it."""
    size, length = b"", len(content)
    while True:
        size += bytes([length & 127 | (128 if length > 127 else 0)])
        length >>= 7
        if not length:
            return bytes([number << 3 | 2]) + size + content


def test_bodies_too_deep_for_protobuf_say_so(tmp_path: Path) -> None:
    alone = node = helper.make_node("If", ["c"], ["y"]).SerializeToString()
    for _ in range(60):  # a graph in an attribute of a node
        node = alone + field(5, field(6, field(1, node)))
    path = tmp_path / "m.onnx"
    path.write_bytes(field(7, field(1, node)))
    with pytest.raises(SourceError, match="read to a depth of about 30"):
        onnx_files.read(path)


def test_a_function_with_the_name_of_an_operator_is_refused(tmp_path: Path) -> None:
    """ONNX Runtime computes Relu here, and would not be what the engine computes."""
    negative = [helper.make_node("Neg", ["a"], ["b"])]
    relu = helper.make_function("", "Relu", ["a"], ["b"], negative, [helper.make_opsetid("", 20)])
    path = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], [relu])
    with pytest.raises(SourceError, match="'Relu' has the name of an ONNX operator") as caught:
        onnx_files.read(path, error=SourceError)
    assert "domain" in caught.value.fix
