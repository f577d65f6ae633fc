"""Sparse tensors and names that two nodes have, as they are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from toy_graphs import result

from enginefarm.documents.sources import OnnxSource
from enginefarm.errors import SourceError
from enginefarm.graph.sources.onnx_file import OnnxFile

DENSE = np.array([[-1, 0, 0, 0], [0, 0, 3, 0], [0, 0, 0, 0], [0, 0, 0, 5]], np.float32)
PLACES = {"linear": np.flatnonzero(DENSE), "by dim": np.argwhere(DENSE)}


def model(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, 1, ["n", 4]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=8)


def read(folder: Path, made: onnx.ModelProto) -> Path:
    onnx.save(made, folder / "m.onnx")
    return OnnxFile().load(OnnxSource(kind="onnx", path="m.onnx"), folder, folder / "read").model


def sparse(indices: np.ndarray, name: str = "w", dims: tuple[int, ...] = (4, 4)) -> Any:
    values = numpy_helper.from_array(DENSE[DENSE != 0], name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(indices, "places"), dims)


def initialized(tensor: Any) -> onnx.ModelProto:
    made = model(helper.make_node("MatMul", ["x", "w"], ["y"], "product"))
    made.graph.sparse_initializer.append(tensor)
    return made


def constant(tensor: Any) -> onnx.ModelProto:
    return model(
        helper.make_node("Constant", [], ["w"], "weights", sparse_value=tensor),
        helper.make_node("MatMul", ["x", "w"], ["y"], "product"),
    )


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("of", [initialized, constant])
def test_sparse_tensors_are_written_out(
    tmp_path: Path, of: Callable[[Any], onnx.ModelProto], kind: str
) -> None:
    path = read(tmp_path, of(sparse(PLACES[kind])))
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_allclose(result(path, x), x @ DENSE)
    graph = onnx.load(path).graph
    assert not graph.sparse_initializer
    assert not [a for node in graph.node for a in node.attribute if a.name == "sparse_value"]


@pytest.mark.parametrize("index", [16, -1])
def test_an_index_outside_of_a_sparse_tensor_is_refused(tmp_path: Path, index: int) -> None:
    with pytest.raises(SourceError, match="sparse tensor 'w' is not valid") as caught:
        read(tmp_path, initialized(sparse(np.array([0, 6, index]))))
    assert "outside of the shape" in caught.value.why


def test_a_sparse_tensor_that_would_take_the_memory_is_refused(tmp_path: Path) -> None:
    large = sparse(PLACES["linear"], dims=(1 << 20, 1 << 20))
    with pytest.raises(SourceError, match=r"sparse tensor 'w' of shape .* is too large"):
        read(tmp_path, initialized(large))


def test_nodes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """ONNX Runtime refuses them; TensorRT-RTX does not, and computes the same."""
    nodes = [
        helper.make_node("Relu", ["x"], ["h"], "node"),
        helper.make_node("Neg", ["h"], ["g"], "node"),
        helper.make_node("Exp", ["g"], ["y"], "node_again"),
    ]
    path = read(tmp_path, model(*nodes))
    found = [node.name for node in onnx.load(path).graph.node]
    assert found[0] == "node"
    assert len(set(found)) == 3
    x = np.array([[-1, 0, 1, 2]], np.float32)
    np.testing.assert_allclose(result(path, x), np.exp(-np.maximum(x, 0)), rtol=1e-6)
