"""Two engines aligned by their ONNX nodes."""

from __future__ import annotations

from typing import Any

from enginefarm.documents.layers import Layer, Layers
from enginefarm.tables.layer_diff import Difference, LayerDiff, cells, diff


def layer(*nodes: str, name: str = "", **more: Any) -> Layer:
    fields: dict[str, Any] = {"precision": "fp16", "tactic": "t", "output_bytes": 8, **more}
    return Layer(name=name or " + ".join(nodes), nodes=nodes, **fields)


def compared(a: list[Layer], b: list[Layer]) -> LayerDiff:
    return diff(Layers(layers=tuple(a)), Layers(layers=tuple(b)))


def changed(a: list[Layer], b: list[Layer]) -> tuple[Difference, ...]:
    return compared(a, b).changed


def test_equal_engines_differ_in_nothing() -> None:
    same = [layer("conv", "relu"), layer("gemm"), layer(name="Reformatting CopyNode for x")]
    assert changed(same, same) == ()


def test_a_fusion_that_is_gone_is_one_row_with_both_sides() -> None:
    (row,) = changed([layer("conv", "relu")], [layer("conv"), layer("relu")])
    assert (row.nodes, len(row.a), len(row.b)) == (("conv", "relu"), 1, 2)
    assert "fused" in row.changed


def test_nodes_that_a_precision_adds_are_no_change_of_what_fused() -> None:
    int8 = layer("conv", "quantize", "relu", precision="int8", output_bytes=4)
    (row,) = changed([layer("conv", "relu")], [int8])
    assert row.changed == ("precision", "bytes")


def test_another_tactic_alone() -> None:
    (row,) = changed([layer("conv")], [layer("conv", tactic="other")])
    assert row.changed == ("tactic",)
    assert "t ⇒ other" in cells(row)


def test_a_layer_of_one_engine_alone() -> None:
    reformat = layer(name="Reformatting CopyNode for Input Tensor 0 to conv")
    (row,) = changed([layer("conv")], [reformat, layer("conv")])
    assert row.changed == ("only in B",)


def test_the_row_that_costs_the_most_time_comes_first() -> None:
    a = [layer("conv", ms=1.0), layer("gemm", ms=1.0)]
    b = [layer("conv", ms=1.1, tactic="u"), layer("gemm", ms=3.0)]
    found = compared(a, b)
    assert [row.nodes for row in found.changed] == [("gemm",), ("conv",)]
    assert found.ms == (2.0, 4.1)


def test_bytes_that_one_side_does_not_know_are_no_difference() -> None:
    assert changed([layer("conv")], [layer("conv", output_bytes=None)]) == ()


def test_times_of_a_part_are_no_total() -> None:
    found = compared([layer("conv", ms=1.0), layer("gemm")], [layer("conv"), layer("gemm")])
    assert found.ms == (None, None)


def test_what_cannot_be_told_is_said() -> None:
    region = Layer(name="{ForeignNode[a...z]}", nodes=("a", "z"))
    notes = diff(Layers(layers=(region,)), Layers(layers=(layer("a"),), network=True)).notes
    assert any("ForeignNode" in note for note in notes)
    assert any(note.startswith("B: these are the layers of the network") for note in notes)
    assert any("A: no profile is stored" in note for note in notes)
    both = compared([layer("conv")], [layer("conv")]).notes
    assert [note.partition(":")[0] for note in both] == ["A and B"], "what is true of both, once"


def test_the_weights_of_a_network_are_no_layers() -> None:
    """INT8 has a constant for each weight and scale, which would hide what else differs."""
    weight = layer("weight", kind="CONSTANT")
    network = Layers(layers=(weight, layer("conv")), network=True)
    assert diff(Layers(layers=(layer("conv"),), network=True), network).changed == ()


def test_layers_of_one_engine_alone_come_last() -> None:
    a = [layer("quantize"), layer("conv")]
    rows = changed(a, [layer("dequantize"), layer("conv", tactic="other")])
    assert [row.nodes for row in rows] == [("conv",), ("quantize",), ("dequantize",)]
