"""Operators that are written out compute what they did, and TensorRT-RTX's parser takes the result
for what it is."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import toy_graphs
from onnx.reference import ReferenceEvaluator

from enginefarm.graph.model import walk
from enginefarm.graph.reading.written_out import write_out

trt: Any = import_module("tensorrt_rtx_bindings")
RNG = np.random.default_rng(0)
Arrays = dict[str, Any]


def model(text: str, opset: int = 20) -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f'<ir_version: {10 if opset < 23 else 11}, opset_import: ["": {opset}]>\n' + text
    )


def run(made: onnx.ModelProto, feeds: Arrays) -> list[Any]:
    runtime: Any = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = made.SerializeToString()
    session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def layers(made: onnx.ModelProto) -> list[str]:
    """Kinds of the layers that TensorRT-RTX's parser makes; none where it refuses the model."""
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    network = trt.Builder(logger).create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(made.SerializeToString()):
        return []
    kinds = (str(network.get_layer(index).type) for index in range(network.num_layers))
    return [kind.rpartition(".")[2] for kind in kinds]


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


LOSS = "(float[n, 5] x, int64[n] t)"
HEADS = "float[2, 2, 1, 8]"
CACHE = "float[2, 2, 6, 8]"


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("text", "opset", "feeds"),
    [
        (
            "g (float[n, 2, 3] t) => (float[n, h, w, 2] y) <int64[4] s = {1, 3, 5, 7}>"
            "{ y = AffineGrid <align_corners = A> (t, s) }",
            20,
            {"t": (2, 3)},
        ),
        (
            "g (float[n, 3, 4] t) => (float[n, d, h, w, 3] y) <int64[5] s = {1, 3, 4, 5, 7}>"
            "{ y = AffineGrid <align_corners = A> (t, s) }",
            20,
            {"t": (3, 4)},
        ),
        (f"g {LOSS} => (float l) {{ l = SoftmaxCrossEntropyLoss (x, t) }}", 20, {"x": (5,)}),
        (
            f'g {LOSS} => (float[n] l) {{ l = NegativeLogLikelihoodLoss <reduction = "none"> '
            "(x, t) }",
            13,
            {"x": (5,)},
        ),
        (
            "g (float[n, 8, 8] x) => (float[n, 5, 10] y) <int64[2] s = {5, 10}>"
            "{ y = CenterCropPad <axes = [1, 2]> (x, s) }",
            18,
            {"x": (8, 8)},
        ),
        (
            "g (float[n, 6] x) => (float[n, 6] y, float[n, 1] mean) <float[6] s = {1,2,3,4,5,6}>"
            "{ y, mean = LayerNormalization (x, s) }",
            17,
            {"x": (6,)},
        ),
    ],
)
def test_what_the_parser_lacks_is_written_in_what_it_has(
    text: str, opset: int, feeds: dict[str, tuple[int, ...]], batch: int
) -> None:
    given: Arrays = {name: normal(batch, *shape) for name, shape in feeds.items()}
    if "int64[n] t" in text:
        given["t"] = np.arange(batch) % 5
    for aligned in ("0", "1") if "= A" in text else ("",):
        made = model(text.replace("= A>", f"= {aligned}>"), opset)
        for tensor in made.graph.initializer:
            if "AffineGrid" in text:  # its size names the batch, too
                size = onnx.numpy_helper.to_array(tensor).copy()
                size[0] = batch
                tensor.CopyFrom(onnx.numpy_helper.from_array(size, tensor.name))
        wanted = run(made, given)
        assert not layers(made)
        assert write_out(made)
        onnx.checker.check_model(made, full_check=True)
        for have, want in zip(run(made, given), wanted, strict=True):
            np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-6)
        assert layers(made)


def test_a_log_softmax_of_numbers_far_apart_is_no_log_of_zero() -> None:
    made = model("g (float[n, 3] x) => (float[n, 3] y) { y = LogSoftmax (x) }", 13)
    assert layers(made)[:2] == ["SOFTMAX", "UNARY"], "the parser no longer takes a Log of it"
    assert write_out(made) == ("LogSoftmax",)
    assert "SOFTMAX" not in layers(made)
    (found,) = run(made, {"x": np.array([[0, 200, -300]], np.float32)})
    np.testing.assert_allclose(found, [[-200, 0, -500]])


def test_a_log_softmax_in_a_branch_is_written_out_too() -> None:
    made = model(
        "g (float[n, 3] x, bool c) => (float[n, 3] y) { y = If (c) <"
        "then_branch = t () => (float[n, 3] a) { a = LogSoftmax (x) },"
        "else_branch = e () => (float[n, 3] b) { b = Identity (x) }> }"
    )
    x = normal(2, 3)
    wanted = run(made, {"x": x, "c": np.array(True)})
    assert write_out(made) == ("LogSoftmax",)
    np.testing.assert_allclose(run(made, {"x": x, "c": np.array(True)})[0], wanted[0], rtol=1e-6)
    kinds = {node.op_type for graph in walk.graphs(made.graph) for node in graph.node}
    assert "LogSoftmax" not in kinds


def test_a_norm_of_an_odd_power_is_of_absolute_values() -> None:
    """The parser makes the third root of a sum of x³ of GlobalLpPool, which may be negative."""
    made = model("g (float[1, 2, 4] x) => (float[1, 2, 1] y) { y = GlobalLpPool <p = 3> (x) }")
    assert write_out(made) == ("GlobalLpPool",)
    assert [node.op_type for node in made.graph.node] == ["Abs", "GlobalLpPool"]
    x = -np.ones((1, 2, 4), np.float32)
    np.testing.assert_allclose(run(made, {"x": x})[0], np.full((1, 2, 1), 4 ** (1 / 3)), rtol=1e-6)
    even = model("g (float[1, 2, 4] x) => (float[1, 2, 1] y) { y = GlobalLpPool <p = 2> (x) }")
    assert write_out(even) == ()


def test_an_attention_with_a_cache_or_a_cap_is_written_out_and_another_stays() -> None:
    made = model(
        f"g ({HEADS} q, {HEADS} k, {HEADS} v, float[2, 2, 5, 8] a, float[2, 2, 5, 8] b)"
        f" => ({HEADS} y, {CACHE} c, {CACHE} d, {HEADS} z)"
        "{ y, c, d = Attention <softcap = 20.0> (q, k, v, , a, b)  z = Attention (q, k, v) }",
        23,
    )
    feeds = {name: normal(2, 2, 1, 8) for name in "qkv"}
    feeds |= {name: normal(2, 2, 5, 8) for name in "ab"}
    wanted = run(made, feeds)
    assert not layers(made)
    assert write_out(made) == ("Attention",)
    assert [node.op_type for node in made.graph.node].count("Attention") == 1
    for have, want in zip(run(made, feeds), wanted, strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-6)
    assert "ATTENTION_INPUT" in layers(made)


@pytest.mark.parametrize(
    ("inputs", "attributes", "call", "stays"),
    [
        ("", "<is_causal = 1>", "q, k, v", True),
        ("", "<scale = 0.5>", "q, k, v", True),
        (", float[6, 6] m", "", "q, k, v, m", True),
        (", float[6, 6] m", "<is_causal = 1>", "q, k, v, m", False),
        ("", "<is_causal = 1>", "q, l, l", False),
        (", float[2, 2, 3, 8] a", "<is_causal = 1>", "q, k, v, , a, a", False),
        ("", "<softmax_precision = 1>", "q, k, v", False),
        (", int64[2] c", "", "q, k, v, , , , c", False),
    ],
)
def test_an_attention_that_the_parser_does_not_take_as_it_is_meant_is_written_out(
    inputs: str, attributes: str, call: str, stays: bool
) -> None:
    """The parser ignores the count of keys that are no padding (`c`), which comes with opset 24."""
    heads = "float[2, 2, n, 8]"
    made = model(
        f"g ({heads} q, {heads} k, {heads} v, float[2, 2, 9, 8] l{inputs}) => ({heads} y)"
        f"{{ y = Attention {attributes} ({call}) }}",
        24 if " c" in inputs else 23,
    )
    assert bool(write_out(made)) is not stays
    assert ("Attention" in {node.op_type for node in made.graph.node}) == stays
    onnx.checker.check_model(made, full_check=True)
    assert layers(made)
    if not stays and " c" not in inputs:
        shapes = {"q": 6, "k": 6, "v": 6, "l": 9, "a": 3}
        feeds = {
            value.name: normal(2, 2, shapes[value.name], 8)
            for value in made.graph.input
            if value.name in shapes
        }
        feeds |= {"m": normal(6, 6)} if " m" in inputs else {}
        original = model(
            f"g ({heads} q, {heads} k, {heads} v, float[2, 2, 9, 8] l{inputs}) => ({heads} y)"
            f"{{ y = Attention {attributes} ({call}) }}",
            23,
        )
        (wanted,) = ReferenceEvaluator(original).run(None, feeds)
        np.testing.assert_allclose(run(made, feeds)[0], wanted, rtol=1e-5, atol=1e-6)


def test_other_graphs_stay_as_they_are() -> None:
    made = model("g (float[n, 3] x) => (float[n, 3] y) { y = Softmax (x) }")
    before = made.SerializeToString()
    assert write_out(made) == ()
    assert made.SerializeToString() == before


@pytest.mark.parametrize("units", [3, 6])
@pytest.mark.parametrize(
    ("sides", "given", "attributes"),
    [
        (1, "", {}),
        (2, "bias state", {"direction": "bidirectional"}),
        (1, "state", {"activations": ["HardSigmoid", "Sigmoid"], "direction": "reverse"}),
    ],
)
def test_a_gru_of_few_units_gets_more_that_nothing_reads(
    units: int, sides: int, given: str, attributes: dict[str, Any]
) -> None:
    made = toy_graphs.gru(units, sides=sides, bias="bias" in given, state="state" in given)
    helper = onnx.helper
    made.graph.node[0].attribute.extend(helper.make_attribute(*one) for one in attributes.items())
    feeds = {"x": normal(7, 1, 3)} | ({"h": normal(sides, 1, units)} if "state" in given else {})
    wanted = run(made, feeds)
    assert write_out(made) == ("GRU",)
    assert walk.attributes(made.graph.node["state" in given])["hidden_size"].i == 8
    onnx.checker.check_model(made, full_check=True)
    for one, other in zip(wanted, run(made, feeds), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("units", "after"), [(2, 0), (7, 0), (5, 1)])
def test_other_grus_stay(units: int, after: int) -> None:
    made = toy_graphs.gru(units)
    made.graph.node[0].attribute.append(onnx.helper.make_attribute("linear_before_reset", after))
    assert write_out(made) == ()
