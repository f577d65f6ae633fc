"""OnnxSlim: fewer nodes and the same numbers, or the graph as it came."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxslim
import pytest
from onnx import TensorProto, helper, numpy_helper

from enginefarm.errors import SlimError
from enginefarm.graph.exporting import slim

FEEDS = [{"x": np.random.default_rng(n).normal(size=(n, 4)).astype(np.float32)} for n in (1, 3)]

DIES = "dying:die"


def save(path: Path, made_of: list, outputs: tuple[str, ...] = ("y",)) -> Path:
    graph = helper.make_graph(
        made_of,
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


def nodes(path: Path) -> int:
    return len(onnx.load(path).graph.node)


def largest_difference(one: Path, other: Path) -> float:
    """Between the results of two graphs, relative to the first one's largest value."""
    sessions = [onnxruntime.InferenceSession(path) for path in (one, other)]
    results = [[session.run(None, feed)[0] for session in sessions] for feed in FEEDS]
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in results)


def test_it_slims_and_the_numbers_stay(tmp_path: Path) -> None:
    report = slim.slim_onnx(redundant(tmp_path / "m.onnx"), tmp_path / "out", FEEDS)
    assert nodes(report.path) < nodes(tmp_path / "m.onnx") == 7
    assert largest_difference(tmp_path / "m.onnx", report.path) <= slim.MAX_RELATIVE
    again = slim.slim_onnx(tmp_path / "m.onnx", tmp_path / "again", FEEDS)
    assert again.path.read_bytes() == report.path.read_bytes()


def here(monkeypatch: pytest.MonkeyPatch, slimmer: Callable[..., Any]) -> None:
    """OnnxSlim as `slimmer`, in this process."""
    monkeypatch.setattr(onnxslim, "slim", slimmer)
    monkeypatch.setattr(slim.Child, "call", lambda child, _, request: slim.slim_here(request))


def test_a_slimmer_that_changes_a_number_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = onnxslim.slim

    def wrong(model: onnx.ModelProto, **options: object) -> onnx.ModelProto:
        made = real(model, **options)
        for tensor in made.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(np.full(4, 2.001, np.float32), tensor.name))
        return made

    here(monkeypatch, wrong)
    report = slim.slim_onnx(redundant(tmp_path / "m.onnx"), tmp_path / "out", FEEDS)
    assert "changed the numbers of output 'y'" in report.refused
    assert nodes(report.path) == nodes(tmp_path / "m.onnx") == 7


def test_rounding_of_another_order_is_no_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = onnxslim.slim

    def rounded(model: onnx.ModelProto, **options: object) -> onnx.ModelProto:
        made = real(model, **options)
        for tensor in made.graph.initializer:
            near = np.full(4, 2.00001, np.float32)
            tensor.CopyFrom(numpy_helper.from_array(near, tensor.name))
        return made

    here(monkeypatch, rounded)
    report = slim.slim_onnx(redundant(tmp_path / "m.onnx"), tmp_path / "out", FEEDS)
    assert report.refused == ""
    assert 1e-6 < largest_difference(tmp_path / "m.onnx", report.path) < 1e-4


def unsorted(model: onnx.ModelProto) -> onnx.ModelProto:
    backwards = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(backwards)
    return model


def of_another_shape(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 5
    return model


def too_deep(model: onnx.ModelProto) -> onnx.ModelProto:
    raise RecursionError("maximum recursion depth exceeded")


def nothing(model: onnx.ModelProto) -> onnx.ModelProto:
    del model.graph.node[:]
    return model


@pytest.mark.parametrize("spoil", [unsorted, of_another_shape, too_deep, nothing])
def test_its_ugly_failures_leave_the_graph_as_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[..., Any]
) -> None:
    here(monkeypatch, lambda model, **options: spoil(model))
    source = redundant(tmp_path / "m.onnx")
    report = slim.slim_onnx(source, tmp_path / "out", FEEDS)
    assert report.refused
    assert report.path == tmp_path / "out" / "model.onnx"
    came = onnx.load(source)
    assert [node.op_type for node in onnx.load(report.path).graph.node] == [
        node.op_type for node in came.graph.node
    ]


def test_a_slimmer_that_dies_leaves_the_graph_as_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dying.py").write_text("import os\ndef die(request): os.abort()\n")
    monkeypatch.syspath_prepend(tmp_path)
    real = slim.Child.call
    monkeypatch.setattr(slim.Child, "call", lambda child, _, request: real(child, DIES, request))
    report = slim.slim_onnx(redundant(tmp_path / "m.onnx"), tmp_path / "out", FEEDS)
    assert "killed by SIGABRT" in report.refused


def test_an_input_without_effect_stays_an_input(tmp_path: Path) -> None:
    path = save(
        tmp_path / "m.onnx",
        [
            helper.make_node("Shape", ["x"], ["s"]),
            helper.make_node("Mul", ["like", "zero"], ["nothing"]),
            helper.make_node("CastLike", ["x", "like"], ["y"]),
        ],
    )
    made = onnx.load(path)
    made.graph.input.append(helper.make_tensor_value_info("like", TensorProto.FLOAT, [3]))
    made.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "zero"))
    onnx.save(made, path)
    feeds = [{**batch, "like": np.ones(3, np.float32)} for batch in FEEDS]
    report = slim.slim_onnx(path, tmp_path / "out", feeds)
    assert report.refused == ""
    assert nodes(report.path) < nodes(path)
    assert [value.name for value in onnx.load(report.path).graph.input] == ["x", "like"]


def test_a_cyclic_graph_and_an_empty_file(tmp_path: Path) -> None:
    circle = [
        helper.make_node("Add", ["x", "b"], ["a"]),
        helper.make_node("Neg", ["a"], ["b"]),
        helper.make_node("Identity", ["b"], ["y"]),
    ]
    with pytest.raises(SlimError):
        slim.slim_onnx(save(tmp_path / "m.onnx", circle), tmp_path / "out", FEEDS)
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(SlimError, match="the graph before slimming"):
        slim.slim_onnx(tmp_path / "empty.onnx", tmp_path / "out", FEEDS)


def test_where_onnxslim_needs_too_much_memory_the_graph_goes_on_as_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINEFARM_BUILD_MEMORY_MIB", "40")
    done = slim.slim_onnx(redundant(tmp_path / "m.onnx"), tmp_path / "out", FEEDS)
    assert "over its limit of 30 MiB" in done.refused
    assert nodes(done.path) == nodes(tmp_path / "m.onnx")
