"""Graphs as tests/gpu writes them for TensorRT 8.6: the same numbers, in opset 17."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

spec = importlib.util.spec_from_file_location(
    "trt86_graph", Path(__file__).parents[2] / "gpu" / "trt86_graph.py"
)
assert spec is not None
assert spec.loader is not None
trt86_graph: Any = importlib.util.module_from_spec(spec)
spec.loader.exec_module(trt86_graph)

X = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
AXES = {"axes": np.array([1])}
GRID = {"grid": np.random.default_rng(1).uniform(-1, 1, (2, 4, 5, 2)).astype(np.float32)}


def node(kind: str, *more: str, **attributes: Any) -> list[onnx.NodeProto]:
    return [helper.make_node(kind, ["x", *more], ["y"], **attributes)]


def computed(path: Path) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X})[0]


@pytest.mark.parametrize(
    ("nodes", "weights", "returns"),
    [
        (node("ReduceMean", "axes", keepdims=0), AXES, TensorProto.FLOAT),
        (node("Shape", start=1, end=-1), {}, TensorProto.INT64),
        (node("Shape", start=2), {}, TensorProto.INT64),
        (node("Gelu"), {}, TensorProto.FLOAT),
        (node("Gelu", approximate="tanh"), {}, TensorProto.FLOAT),
        (node("GridSample", "grid", mode="linear"), GRID, TensorProto.FLOAT),
        (node("GridSample", "grid", mode="cubic"), GRID, TensorProto.FLOAT),
    ],
)
def test_a_later_operator_is_written_as_opset_17_has_it(
    tmp_path: Path, nodes: list[onnx.NodeProto], weights: dict[str, Any], returns: int
) -> None:
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [helper.make_tensor_value_info("y", returns, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    lowered = trt86_graph.lowered(tmp_path / "m.onnx", tmp_path / "lowered.onnx")
    assert onnx.load(lowered).opset_import[0].version == 17
    np.testing.assert_allclose(computed(lowered), computed(tmp_path / "m.onnx"), atol=1e-6)


def test_what_an_fp16_graph_computes_in_fp32_is_told_by_its_types(tmp_path: Path) -> None:
    """8.6 itself calls every output FP32 until it builds."""
    path = tmp_path / "m.onnx"
    tensor = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Cast", ["x"], ["low"], to=TensorProto.FLOAT16),
        helper.make_node("Relu", ["low"], ["narrow"]),
        helper.make_node("Cast", ["narrow"], ["high"], to=TensorProto.FLOAT),
        helper.make_node("Exp", ["high"], ["y"]),
    ]
    x, y = (tensor(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [x], [y])), path)
    assert trt86_graph.values_in_fp32(path) == {"high", "y"}
