"""Names of values: renamed in every graph of a model, and one for each output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from toy_graphs import exported, run

from enginefarm.errors import ExportError
from enginefarm.graph.model import onnx_files
from enginefarm.graph.model.edit import rename

X = np.array([[-1, 0, 1, 2]], np.float32)
IF = """<ir_version: 8, opset_import: ["" : 17]>
    agraph (bool c, float[n, 4] x) => (float[n, 4] y) {
        h = Neg (x)
        y = If (c) <
            then_branch = one () => (float[n, 4] t) { inner = Relu (h) t = Abs (inner) },
            else_branch = other () => (float[n, 4] e) { e = Exp (h) }>
    }"""


def relu(outputs: list[str], **more: Any) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in outputs]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])]
    graph = helper.make_graph(nodes, more.get("name", "g"), [given], values)
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_renaming_moves_a_value_that_has_the_name(tmp_path: Path) -> None:
    made = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Relu", ["x"], ["scores"]),
                helper.make_node("Neg", ["scores"], ["out"]),
            ],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, [2])],
        )
    )
    rename(made, {"out": "scores", "x": "image"})
    assert [value.name for value in made.graph.output] == ["scores"]
    assert made.graph.node[1].output[0] == "scores"
    assert made.graph.node[0].input[0] == "image"
    onnx_files.check(onnx_files.write(made, tmp_path), error=ExportError, what="renamed")


@pytest.mark.parametrize("name", ["inner", "t", "h"])
def test_a_name_that_a_body_has_already_is_moved_there(tmp_path: Path, name: str) -> None:
    made = parser.parse_model(IF)
    rename(made, {"y": name, "x": "image"})
    path = onnx_files.write(made, tmp_path)
    onnx_files.check(path, error=ExportError, what="renamed")
    for taken, wanted in ((True, np.maximum(-X, 0)), (False, np.exp(-X))):
        found = run(path, c=np.array(taken), image=X)
        np.testing.assert_allclose(found[name], wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("names", "wanted"),
    [([], ["y", "y_2", "z", "y_3"]), (["a", "z", "y", "d"], ["a", "z", "y", "d"])],
)
def test_an_output_that_is_listed_twice_is_two_tensors(
    tmp_path: Path, names: list[str], wanted: list[str]
) -> None:
    """TensorRT would make one of them, and the engine would lack the others."""
    report = exported(tmp_path, relu(["y", "y", "z", "y"]), outputs=names)
    assert list(report.outputs) == wanted
    found = run(report.path, x=X)
    for name, sign in zip(wanted, (1, 1, 0, 1), strict=True):
        np.testing.assert_array_equal(found[name], np.maximum(X, 0) if sign else -X)


def test_a_graph_without_a_name_is_read(tmp_path: Path) -> None:
    """ONNX Runtime runs it; onnx's checker wants a name."""
    report = exported(tmp_path, relu(["y"], name=""))
    np.testing.assert_array_equal(run(report.path, x=X)["y"], np.maximum(X, 0))


def test_the_long_name_of_onnxs_domain_is_the_short_one(tmp_path: Path) -> None:
    made = relu(["y"])
    made.graph.node[0].domain = "ai.onnx"
    report = exported(tmp_path, made)
    np.testing.assert_array_equal(run(report.path, x=X)["y"], np.maximum(X, 0))


def test_constants_written_as_numbers_do_not_stop_onnxslim(tmp_path: Path) -> None:
    made = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        agraph (float[n, 4] x) => (float[n, 4] y) {
            c = Constant <value_floats = [1.0, 2.0, 3.0, 4.0]> ()
            y = Mul (x, c)
        }"""
    )
    report = exported(tmp_path, made)
    kept = onnx_files.read(report.path)
    assert [node.op_type for node in kept.graph.node] == ["Mul"]
    (weight,) = kept.graph.initializer
    assert numpy_helper.to_array(weight).dtype == np.float32
