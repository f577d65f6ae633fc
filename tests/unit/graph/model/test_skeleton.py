"""Which values a skeleton leaves out, and which weights differ between two graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_onnx
from onnx import TensorProto, helper, numpy_helper

from enginefarm.errors import BuildError
from enginefarm.graph.model import skeleton

KINDS: dict[str, tuple[str, list[str], Any]] = {
    "a kernel": ("Conv", ["x", "v"], np.ones((2, 2, 1, 1), np.float32)),
    "a kernel in 16 bits": ("Conv", ["x", "v"], np.ones((2, 2, 1, 1), np.float16)),
    "a bias": ("Add", ["x", "v"], np.ones((2, 1, 1), np.float32)),
    "a factor of a product": ("MatMul", ["x", "v"], np.ones((4, 4), np.float32)),
    "the limit of a Clip": ("Clip", ["x", "v"], np.float32(0)),
    "scales of a Resize": ("Resize", ["x", "", "v"], np.ones(4, np.float32)),
    "a scale of Q": ("QuantizeLinear", ["x", "v"], np.float32(0.1)),
    "a shape": ("Reshape", ["x", "v"], np.array([2, -1], np.int64)),
    "a constant in FP64": ("Add", ["x", "v"], np.ones(1, np.float64)),
    "a kernel in bfloat16": ("Conv", ["x", "v"], np.ones((2, 2, 1, 1), np.float32)),
}
LEFT_OUT = {"a kernel", "a kernel in 16 bits", "a bias", "a factor of a product"}


def graph(folder: Path, nodes: list[Any], *weights: Any) -> Path:
    folder.mkdir(exist_ok=True)
    return tiny_onnx.save(
        folder / "model.onnx",
        nodes,
        [tiny_onnx.value("x", [1, 2, 4, 4], TensorProto.FLOAT)],
        [tiny_onnx.value("y", None, TensorProto.FLOAT)],
        list(weights),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_no_builder_reads_are_left_out(kind: str, tmp_path: Path) -> None:
    operator, inputs, value = KINDS[kind]

    def digest(value: Any) -> str:
        weight = numpy_helper.from_array(np.asarray(value), "v")
        if "bfloat16" in kind:
            weight = helper.make_tensor("v", TensorProto.BFLOAT16, value.shape, value.ravel())
        return skeleton.digest(
            str(graph(tmp_path, [helper.make_node(operator, inputs, ["y"], "n")], weight))
        )

    same = digest(value) == digest(value + 1)
    assert same is (kind in LEFT_OUT)
    assert digest(value) == digest(value)


def test_a_weight_that_one_node_reads_as_a_value_stays(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Add", ["x", "v"], ["a"], "add"),
        helper.make_node("Clip", ["a", "v"], ["y"], "clip"),
    ]
    one, other = (
        skeleton.digest(str(graph(tmp_path, nodes, numpy_helper.from_array(value, "v"))))
        for value in (np.float32(1), np.float32(2))
    )
    assert one != other


def test_a_weight_that_a_branch_uses_stays(tmp_path: Path) -> None:
    def branch(name: str, operator: str) -> Any:
        node = helper.make_node(operator, ["a", "v"], [name], name)
        return helper.make_graph([node], name, [], [tiny_onnx.value(name, None, TensorProto.FLOAT)])

    nodes = [
        helper.make_node("Add", ["x", "v"], ["a"], "add"),
        helper.make_node(
            "If", ["c"], ["y"], "if", then_branch=branch("t", "Add"), else_branch=branch("e", "Mul")
        ),
    ]
    condition = numpy_helper.from_array(np.array(True), "c")
    one, other = (
        skeleton.digest(str(graph(tmp_path, nodes, numpy_helper.from_array(value, "v"), condition)))
        for value in (np.float32(1), np.float32(2))
    )
    assert one != other


def test_another_size_or_name_is_another_skeleton(tmp_path: Path) -> None:
    found = {
        skeleton.digest(
            str(
                graph(
                    tmp_path,
                    [helper.make_node("Add", ["x", name], ["y"], "add")],
                    numpy_helper.from_array(np.ones(size, np.float32), name),
                )
            )
        )
        for name, size in (("v", 4), ("v", 1), ("w", 4))
    }
    assert len(found) == 3


def test_weights_in_a_file_of_their_own_are_read(tmp_path: Path) -> None:
    path = tiny_onnx.convolutions(tmp_path / "model.onnx")
    inside = skeleton.digest(str(path))
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="d", size_threshold=0)
    assert (tmp_path / "d").stat().st_size > 0
    assert skeleton.digest(str(path)) == inside


def written(tmp_path: Path, **others: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    from safetensors.numpy import load_file

    before = tiny_onnx.convolutions(tmp_path / "before.onnx", layers=3)
    model = onnx.load(before)
    changed = 2 * numpy_helper.to_array(model.graph.initializer[1])
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(changed, "w1"))
    after = tmp_path / "after.onnx"
    onnx.save(model, after)
    order = skeleton.WeightsOrder(before=before, after=after, dest=tmp_path / "w", **others)
    names = skeleton.WeightNames.model_validate_json(
        skeleton.write_weights(order.model_dump_json())
    )
    found: dict[str, Any] = load_file(order.dest)
    np.testing.assert_array_equal(found["w1"], changed)
    assert found["w1"].dtype == np.float16
    return names.names, found


def test_the_weights_that_differ_are_written_and_no_others(tmp_path: Path) -> None:
    names, found = written(tmp_path)
    assert names == ("w1",)
    assert found.keys() == {"w1"}


def test_others_are_written_with_them(tmp_path: Path) -> None:
    names, found = written(tmp_path, others=("w2",))
    assert names == ("w1", "w2")
    assert found.keys() == {"w1", "w2"}
    with pytest.raises(BuildError, match="also needs weight 'c0'"):
        written(tmp_path, others=("c0",))


def test_two_equal_graphs_have_nothing_to_set(tmp_path: Path) -> None:
    path = tiny_onnx.convolutions(tmp_path / "model.onnx")
    order = skeleton.WeightsOrder(before=path, after=path, dest=tmp_path / "w")
    with pytest.raises(BuildError, match="every weight is equal"):
        skeleton.write_weights(order.model_dump_json())
