"""What is read out of an engine inspector's JSON, in each form that it has had."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enginefarm.documents.layers import Layer, read_layers
from enginefarm.errors import CorruptBlob


def layer(name: str, **more: Any) -> dict[str, Any]:
    return {"Name": name, "LayerType": "CaskConvolution", "Inputs": [], "Outputs": [], **more}


def tensor(kind: str, *dims: int) -> dict[str, Any]:
    """As 8.6 to 10 write one."""
    return {"Name": "t", "Location": "Device", "Dimensions": [*dims], "Format/Datatype": kind}


def read(*layers: Any) -> tuple[Layer, ...]:
    return read_layers(json.dumps({"Layers": layers, "Bindings": ["x"]}).encode()).layers


def test_a_layer_of_8_6_to_10() -> None:
    (found,) = read(
        layer(
            "Conv_0 + Relu_1",
            Inputs=[tensor("Channel major FP16 format where channel % 8 == 0", 32, 3, 4, 4)],
            Outputs=[tensor("Channel major FP16 format where channel % 8 == 0", 32, 64, 2, 2)],
            Weights={"Type": "Half", "Count": 9408},
            Bias={"Type": "Half", "Count": 64},
            TacticName="sm80_xmma_fprop",
            TacticValue="0xe2222883a6602489",
        )
    )
    assert found == Layer(
        name="Conv_0 + Relu_1",
        kind="CaskConvolution",
        nodes=("Conv_0", "Relu_1"),
        precision="fp16",
        tactic="sm80_xmma_fprop",
        weight_bytes=2 * (9408 + 64),
        output_bytes=2 * 32 * 64 * 2 * 2,
    )


def test_a_layer_of_11_stands_in_a_list_with_its_type_and_format_apart() -> None:
    entry = {
        "Name": "__myl_MulSum_myl0_3",
        "LayerType": "kgen",
        "Inputs": [{"Name": "x", "Dimensions": [8, 16], "Datatype": "Half", "Format": "Linear"}],
        "Constants": [{"Name": "w", "Dimensions": [16, 16], "Datatype": "FP8E4M3"}],
        "Outputs": [{"Name": "y", "Dimensions": [8, 16], "Datatype": "Half", "Format": "Linear"}],
        "TacticName": "__myl_MulSum_0xf00",
        "StreamId": 0,
        "Metadata": "[ONNX Layer: /up/MatMul]\x1e[ONNX Layer: /up/Add | Local Function: gelu]",
    }
    (found,) = read_layers(json.dumps([entry]).encode()).layers
    assert found.nodes == ("/up/MatMul", "/up/Add")
    assert (found.precision, found.weight_bytes, found.output_bytes) == ("fp8", 256, 256)


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("Conv_12 + PWN(Clip_16)", ("Conv_12", "Clip_16")),
        ("PWN(PWN(PWN(/act/Sigmoid), /act/Mul), /Add)", ("/act/Sigmoid", "/act/Mul", "/Add")),
        ("{ForeignNode[/a/LayerNorm.../a/Add]}", ("/a/LayerNorm", "/a/Add")),
        ("/q/MatMul || /k/MatMul || /v/MatMul", ("/q/MatMul", "/k/MatMul", "/v/MatMul")),
        ("Conv_0 + (Unnamed Layer* 1) [Shuffle]", ("Conv_0",)),
        ("Reformatting CopyNode for Input Tensor 0 to Conv_0 + Relu_1", ()),
        ("__myl_CastMul_myl0_1", ()),
        ("conv(1) + relu", ("conv(1)", "relu")),
    ],
)
def test_the_onnx_nodes_behind_a_layer_without_metadata(name: str, nodes: tuple[str, ...]) -> None:
    assert read(layer(name))[0].nodes == nodes


def test_metadata_counts_where_it_is_there() -> None:
    said = "[ONNX Layer: model[0]/conv]\x1e[ONNX Layer: model[0]/relu]"
    assert read(layer("__myl_x", Metadata=said))[0].nodes == ("model[0]/conv", "model[0]/relu")


def test_a_layer_that_changes_the_type_says_from_and_to() -> None:
    row_major = [tensor("Row major linear FP32", 2, 2)]
    vector = [tensor("Thirty-two wide channel vectorized row major Int8 format", 2, 2)]
    (found,) = read(layer("QuantizeLinear_2", Inputs=row_major, Outputs=vector))
    assert (found.precision, found.output_bytes) == ("fp32 → int8", 4)


def test_what_a_dynamic_dim_makes_unknown_is_none_and_not_a_number() -> None:
    (found,) = read(layer("Conv_0", Outputs=[tensor("Row major linear FP32", -1, 64)]))
    assert (found.precision, found.output_bytes) == ("fp32", None)


def test_a_builder_that_kept_names_only() -> None:
    found = read_layers(b'{"Layers": ["Conv_0 + Relu_1 [profile 0]"], "Bindings": []}')
    assert found.layers[0].nodes == ("Conv_0", "Relu_1")
    assert not found.detailed


@pytest.mark.parametrize(
    "data", [b"", b"{", b"3", b'{"Bindings": []}', b"[1]", b'[{"LayerType": "x"}]', b"[" * 9999]
)
def test_anything_else_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(CorruptBlob, match="mine: this is not an engine inspector's JSON"):
        read_layers(data, "mine")
