"""OnnxSlim: fewer nodes, the same numbers, or an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxslim
import pytest
from onnx import TensorProto, helper, numpy_helper

from enginefarm.errors import SlimError
from enginefarm.graph import slim

FEEDS = [{"x": np.random.default_rng(n).normal(size=(n, 4)).astype(np.float32)} for n in (1, 3)]


def save(path: Path, nodes: list, outputs: tuple[str, ...] = ("y",)) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in outputs],
        [numpy_helper.from_array(np.full(4, 2, np.float32), "two")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(made, path)
    return path


def redundant(path: Path) -> Path:
    """y = x * 2 by way of nodes that do nothing."""
    return save(
        path,
        [
            helper.make_node("Identity", ["x"], ["a"]),
            helper.make_node("Mul", ["a", "two"], ["b"]),
            helper.make_node("Identity", ["b"], ["c"]),
            helper.make_node("Neg", ["c"], ["d"]),
            helper.make_node("Neg", ["c"], ["e"]),
            helper.make_node("Sub", ["c", "d"], ["f"]),
            helper.make_node("Add", ["f", "e"], ["y"]),
        ],
    )


def test_it_slims_and_the_numbers_stay(tmp_path: Path) -> None:
    report = slim.slim_onnx(redundant(tmp_path / "m.onnx"), tmp_path / "out", FEEDS)
    assert report.nodes_after < report.nodes_before == 7
    assert report.max_relative <= slim.MAX_RELATIVE
    assert report.path.read_bytes()
    again = slim.slim_onnx(tmp_path / "m.onnx", tmp_path / "again", FEEDS)
    assert again.path.read_bytes() == report.path.read_bytes()


def test_a_slimmer_that_changes_a_number_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = onnxslim.slim

    def wrong(model: onnx.ModelProto, **options: object) -> onnx.ModelProto:
        made = real(model, **options)
        for tensor in made.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(np.full(4, 2.0001, np.float32), tensor.name))
        return made

    monkeypatch.setattr(onnxslim, "slim", wrong)
    with pytest.raises(SlimError, match="changed the numbers of output 'y'"):
        slim.slim_onnx(redundant(tmp_path / "m.onnx"), tmp_path / "out", FEEDS)


def test_its_ugly_failures_become_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(model: onnx.ModelProto, **options: object) -> None:
        raise RecursionError("maximum recursion depth exceeded")

    monkeypatch.setattr(onnxslim, "slim", fails)
    with pytest.raises(SlimError, match=r"OnnxSlim failed on m\.onnx") as caught:
        slim.slim_onnx(redundant(tmp_path / "m.onnx"), tmp_path / "out", FEEDS)
    assert "RecursionError" in caught.value.why


def test_a_cyclic_graph_and_an_empty_file(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"]),
        helper.make_node("Neg", ["a"], ["b"]),
        helper.make_node("Identity", ["b"], ["y"]),
    ]
    with pytest.raises(SlimError):
        slim.slim_onnx(save(tmp_path / "m.onnx", nodes), tmp_path / "out", FEEDS)
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(SlimError, match="the file is empty"):
        slim.slim_onnx(tmp_path / "empty.onnx", tmp_path / "out", FEEDS)
