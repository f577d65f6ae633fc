"""The cast to 16 bits: bodies, integers, fixed operands, masks, half models, names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from tiny_models import document
from toy_graphs import made, run

from enginefarm.documents.recipe import Recipe
from enginefarm.graph.model import onnx_files, walk
from enginefarm.graph.model.emulate import emulate
from enginefarm.graph.precisions import mixed, precision, prepare

RECIPE = Recipe.model_validate(document())
RANDOM = np.random.default_rng(0)


def cast(model: onnx.ModelProto, tmp_path: Path, name: str = "fp16") -> onnx.ModelProto:
    source = onnx_files.write(model, tmp_path / "in")
    report = precision(name).convert(source, tmp_path / name, RECIPE, ())
    return onnx_files.read(report.path)


def types(model: onnx.ModelProto) -> dict[str, int]:
    """dtype of every value of every graph, by the name that it has there."""
    found: dict[str, int] = {}
    for graph in walk.graphs(model.graph):
        for value in (*graph.value_info, *graph.input, *graph.output):
            found[value.name] = value.type.tensor_type.elem_type
        found.update((tensor.name, tensor.data_type) for tensor in graph.initializer)
    return found


def node_of(model: onnx.ModelProto, op: str) -> onnx.NodeProto:
    return next(n for graph in walk.graphs(model.graph) for n in graph.node if n.op_type == op)


def reads(model: onnx.ModelProto, op: str) -> set[int]:
    known = types(model)
    return {known[name] for name in node_of(model, op).input if name}


WEIGHT = RANDOM.normal(size=(4, 4)).astype(np.float32)
LOOP = """
    agraph (int64 n, float[4, 4] x) => (float[4, 4] y) {
        yes = Constant <value = bool {1}> ()
        y = Loop (n, yes, x) <body = step (int64 i, bool go, float[4, 4] h)
            => (bool still, float[4, 4] next) {
                still = Identity (go)
                m = MatMul (h, w)
                next = Tanh (m)
            }>
    }"""
SCAN = """
    agraph (float[3, 4, 4] x) => (float[3, 4, 4] y) {
        y = Scan <num_scan_inputs = 1, body = step (float[4, 4] h) => (float[4, 4] o) {
            o = MatMul (h, w)
        }> (x)
    }"""
IF = """
    agraph (bool c, float[4, 4] x) => (float[4, 4] y) {
        h = MatMul (x, w)
        y = If (c) <then_branch = yes () => (float[4, 4] a) { a = MatMul (h, w) },
                    else_branch = no () => (float[4, 4] a) { a = Identity (h) }>
    }"""


@pytest.mark.parametrize("name", ["fp16", "bf16"])
@pytest.mark.parametrize(
    ("text", "feeds"),
    [
        (LOOP, {"n": np.int64(3)}),
        (SCAN, {"x": RANDOM.normal(size=(3, 4, 4)).astype(np.float32)}),
        (IF, {"c": np.bool_(True)}),
        (IF, {"c": np.bool_(False)}),
    ],
    ids=["Loop", "Scan", "If, then", "If, else"],
)
def test_bodies_are_cast_too(tmp_path: Path, name: str, text: str, feeds: dict[str, Any]) -> None:
    feeds = {"x": RANDOM.normal(size=(4, 4)).astype(np.float32)} | feeds
    low = TensorProto.FLOAT16 if name == "fp16" else TensorProto.BFLOAT16
    converted = cast(made(text, w=WEIGHT), tmp_path, name)
    products = [
        node
        for graph in walk.graphs(converted.graph)
        for node in graph.node
        if node.op_type == "MatMul"
    ]
    known = types(converted)
    assert all(known[name] == low for node in products for name in node.input)
    assert [tensor.name for tensor in converted.graph.initializer].count("w") == 0, "no FP32 copy"
    if name == "fp16":
        wanted = run(made(text, w=WEIGHT), **feeds)["y"]
        np.testing.assert_allclose(run(converted, **feeds)["y"], wanted, atol=0.02)


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_what_goes_through_a_sequence_keeps_its_type(tmp_path: Path, name: str) -> None:
    """torch writes EmbeddingBag so."""
    text = """
    agraph (float[4, 4] x) => (float[4, 4] y) {
        h = MatMul (x, w)
        empty = SequenceEmpty ()
        full = SequenceInsert (empty, h)
        back = ConcatFromSequence <axis = 0> (full)
        y = MatMul (back, w)
    }"""
    x = RANDOM.normal(size=(4, 4)).astype(np.float32)
    converted = cast(made(text, w=WEIGHT), tmp_path, name)
    if name == "fp16":
        wanted = run(made(text, w=WEIGHT), x=x)["y"]
        np.testing.assert_allclose(run(converted, x=x)["y"], wanted, atol=0.05)


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_no_cast_stands_at_the_border_of_a_scans_body(tmp_path: Path, name: str) -> None:
    """TensorRT-RTX refuses one there."""
    text = """
    agraph (float[2] first, float[3, 2] x) => (float[2] y, float[3, 2] z) {
        y, z = Scan <num_scan_inputs = 1, body = step (float[2] sum, float[2] next)
            => (float[2] added, float[2] each) {
                e = Exp (next)
                added = Add (sum, e)
                each = Identity (added)
            }> (first, x)
    }"""
    feeds = {"first": np.zeros(2, "f"), "x": RANDOM.normal(size=(3, 2)).astype("f")}
    converted = cast(made(text), tmp_path, name)
    (body,) = (graph for graph in walk.graphs(converted.graph) if graph.name == "step")
    low = TensorProto.FLOAT16 if name == "fp16" else TensorProto.BFLOAT16
    assert {v.type.tensor_type.elem_type for v in (*body.input, *body.output)} == {low}
    makers = {out: node for node in body.node for out in node.output}
    assert [makers[v.name].op_type for v in body.output] == ["Add", "Identity"]
    kinds = types(converted)
    assert (kinds["y"], kinds["z"], kinds["first"]) == (TensorProto.FLOAT,) * 3
    wanted, found = run(made(text), **feeds), run(emulate(converted), **feeds)
    np.testing.assert_allclose(found["z"], wanted["z"], rtol=0.02)


def test_an_integer_that_becomes_a_float_stays_exact(tmp_path: Path) -> None:
    """4097 is no FP16 number: Range would end too early, and a position would move."""
    model = made("""
        agraph (float[n, 4] x, int64[m] at) => (float[k] steps, float[m] places) {
            shape = Shape <start = 0, end = 1> (x)
            zero = Constant <value = int64[1] {0}> ()
            length = Squeeze (shape, zero)
            f = Cast <to = 1> (length)
            start = Constant <value = float {0}> ()
            step = Constant <value = float {1}> ()
            steps = Range (start, f, step)
            places = Cast <to = 1> (at)
        }""")
    x, at = np.zeros((4097, 4), np.float32), np.array([2049, 4097, 100_001], np.int64)
    for name in ("fp16", "bf16"):
        converted = cast(model, tmp_path, name)
        found = run(converted, x=x, at=at)
        assert found["steps"].shape == (4097,)
        assert found["places"].tolist() == [2049, 4097, 100_001]


def test_bytes_that_become_floats_are_cast_to_16_bits_at_once(tmp_path: Path) -> None:
    converted = cast(
        made("agraph (uint8[n, 4] x) => (float[n, 4] y) { f = Cast <to=1> (x) y = MatMul (f, w) }",
             w=WEIGHT), tmp_path)  # fmt: skip
    assert [node.op_type for node in converted.graph.node] == ["Cast", "MatMul", "Cast"]


QDQ = """
    agraph (float[n, 4] x) => (float[n, 4] y) {
        q = QuantizeLinear (x, s, z)
        d = DequantizeLinear (q, s, z)
        y = MatMul (d, w)
    }"""


@pytest.mark.parametrize("opset", [13, 19])
def test_scales_that_the_schema_fixes_to_float_are_left_alone(tmp_path: Path, opset: int) -> None:
    head = f'<ir_version: 9, opset_import: ["" : {opset}]>'
    model = made(QDQ, head, s=np.float32(0.01), z=np.int8(0), w=WEIGHT)
    converted = cast(model, tmp_path)
    assert reads(converted, "MatMul") == {TensorProto.FLOAT16}
    x = RANDOM.normal(size=(3, 4)).astype(np.float32)
    np.testing.assert_allclose(run(converted, x=x)["y"], run(model, x=x)["y"], atol=0.02)


def test_an_int8_input_with_a_scale_of_opset_13(tmp_path: Path) -> None:
    model = made("""
        agraph (int8[n,4] x) => (float[n,4] y) { d = DequantizeLinear (x, s) y = MatMul (d, w) }""",
        '<ir_version: 8, opset_import: ["" : 13]>', s=np.float32(0.02), w=WEIGHT)  # fmt: skip
    converted = cast(model, tmp_path)
    assert types(converted)[node_of(converted, "DequantizeLinear").input[1]] == TensorProto.FLOAT
    assert reads(converted, "MatMul") == {TensorProto.FLOAT16}


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_a_half_model_keeps_its_inputs_and_outputs(tmp_path: Path, kind: str) -> None:
    """Quantized, cast to the other 16 bits, or kept: the types that it declares stay."""
    model = made(
        f"agraph ({kind}[n, 4] x) => ({kind}[n, 4] y) {{ h = MatMul (x, w) y = Relu (h) }}"
    )
    element = TensorProto.FLOAT16 if kind == "float16" else TensorProto.BFLOAT16
    weight = numpy_helper.from_array(WEIGHT.astype(np.float16), "w")
    if kind == "bfloat16":
        import ml_dtypes

        data = WEIGHT.astype(ml_dtypes.bfloat16).tobytes()
        weight = onnx.helper.make_tensor("w", element, (4, 4), data, raw=True)
    model.graph.initializer.append(weight)
    for name in ("fp16", "bf16"):
        converted = cast(model, tmp_path, name)
        declared = [*converted.graph.input, *converted.graph.output]
        assert [value.type.tensor_type.elem_type for value in declared] == [element] * 2
        low = TensorProto.FLOAT16 if name == "fp16" else TensorProto.BFLOAT16
        assert reads(converted, "MatMul") == {low}
    if kind == "float16":
        x = RANDOM.normal(size=(3, 4)).astype(np.float16)
        found = run(cast(model, tmp_path), x=x)["y"]
        np.testing.assert_allclose(found, np.maximum(x @ WEIGHT.astype(np.float16), 0), atol=0.02)


MASKED = """
    agraph (float[n, 4] x, bool[n, 4] keep) => (float[n, 4] y) {
        bias = Where (keep, zero, far)
        s = Add (x, bias)
        y = Softmax (s)
    }"""


@pytest.mark.parametrize("name", ["fp16", "bf16"])
@pytest.mark.parametrize("far", [-3.4028235e38, -1e9])
def test_a_mask_is_finite_in_16_bits(tmp_path: Path, name: str, far: float) -> None:
    model = made(MASKED, zero=np.float32(0), far=np.float32(far))
    converted = cast(model, tmp_path, name)
    assert reads(converted, "Softmax") == {
        TensorProto.FLOAT16 if name == "fp16" else TensorProto.BFLOAT16
    }
    low = next(t for t in converted.graph.initializer if t.name.startswith("far"))
    value = numpy_helper.to_array(low).astype(np.float64)
    assert np.isfinite(2 * value)
    assert value < -1e4
    if name == "fp16":
        keep = np.array([[1, 1, 0, 0], [0, 0, 0, 0]], bool)
        found = run(converted, x=np.zeros((2, 4), np.float32), keep=keep)["y"]
        assert found.tolist() == [[0.5, 0.5, 0, 0], [0.25] * 4], "no NaN where all is masked"


def test_a_mask_that_was_computed_in_fp32_is_bounded_before_it_is_narrowed(tmp_path: Path) -> None:
    model = made("""
        agraph (float[n, 4] x, float[n, 4] drop) => (float[n, 4] y) {
            b = Mul (drop, far)
            s = Add (x, b)
            y = Softmax (s)
        }""", far=np.float32(-3.4028235e38))  # fmt: skip
    source = onnx_files.write(model, tmp_path / "in")
    prepared = prepare.fp32(source, "fp16")
    wide = mixed.cast(prepared, TensorProto.FLOAT16, {prepared.graph.node[0].name})
    found = run(wide, x=np.zeros((1, 4), np.float32), drop=np.ones((1, 4), np.float32))
    assert found["y"].tolist() == [[0.25] * 4]


def test_a_weight_that_fp16_does_not_hold_makes_its_node_wide(tmp_path: Path) -> None:
    model = made(
        "agraph (float[n, 4] x) => (float[n, 4] y) { h = Mul (x, big) g = Mul (h, small) y = MatMul (g, w) }",  # noqa: E501
        big=np.full(4, 1e6, np.float32), small=np.full(4, 1e-6, np.float32), w=WEIGHT,
    )  # fmt: skip
    x = RANDOM.normal(size=(3, 4)).astype(np.float32)
    converted = cast(model, tmp_path)
    known = types(converted)
    products = [node for node in converted.graph.node if node.op_type == "Mul"]
    assert all(known[name] == TensorProto.FLOAT for node in products for name in node.input)
    assert reads(converted, "MatMul") == {TensorProto.FLOAT16}
    np.testing.assert_allclose(run(converted, x=x)["y"], x @ WEIGHT, atol=0.02)


def test_the_variance_of_a_batch_normalization_may_be_any_number(tmp_path: Path) -> None:
    model = made(
        "agraph (float[n,4,2] x) => (float[n,4,2] y) { y = BatchNormalization (x, g, b, m, v) }",
        g=np.full(4, 1400, np.float32), b=np.ones(4, np.float32), m=np.full(4, 30, np.float32),
        v=np.array([4.97e5, 1e6, 2e5, 3e5], np.float32),
    )  # fmt: skip
    x = RANDOM.normal(30, 5, size=(3, 4, 2)).astype(np.float32)
    converted = cast(model, tmp_path)
    assert (
        types(converted)[node_of(converted, "BatchNormalization").input[0]] == TensorProto.FLOAT16
    )
    wanted = run(model, x=x)["y"]
    np.testing.assert_allclose(run(converted, x=x)["y"], wanted, atol=0.1)


def test_an_lstm_with_peepholes_stays_wide(tmp_path: Path) -> None:
    shapes = {"w": (1, 8, 4), "r": (1, 8, 2), "b": (1, 16), "p": (1, 6)}
    weights = {name: RANDOM.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    text = """agraph (float[n, 1, 4] x) => (float[n, 1, 1, 2] y) {{
        y = LSTM <hidden_size = 2> (x, w, r, b, , , {}) }}"""
    plain = {name: weights[name] for name in ("w", "r", "b")}
    assert reads(cast(made(text.format(", p"), **weights), tmp_path), "LSTM") == {TensorProto.FLOAT}
    assert reads(cast(made(text.format(""), **plain), tmp_path), "LSTM") == {TensorProto.FLOAT16}


@pytest.mark.parametrize(("operator", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_a_recurrent_layer_with_lengths_stays_wide(
    tmp_path: Path, operator: str, gates: int
) -> None:
    """TensorRT-RTX 1.7.1 parses none in 16 bits."""
    shapes = {"w": (1, 2 * gates, 4), "r": (1, 2 * gates, 2), "b": (1, 4 * gates)}
    weights = {name: RANDOM.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    text = f"""agraph (float[n, b, 4] x, int32[b] l) => (float[n, 1, b, 2] y) {{
        y = {operator} <hidden_size = 2> (x, w, r, b, l) }}"""
    with_lengths = cast(made(text, **weights), tmp_path)
    assert reads(with_lengths, operator) - {TensorProto.INT32} == {TensorProto.FLOAT}


def test_names_that_the_cast_makes_are_free(tmp_path: Path) -> None:
    """A model whose values are called as ours would be, in the graph and in a body."""
    model = made("""
        agraph (bool c, float[4, 4] x) => (float[4, 4] y) {
            x_low = MatMul (x, w)
            w_low = Pow (x_low, w)
            y = If (c) <then_branch = yes () => (float[4, 4] y_low) { y_low = MatMul (w_low, w) },
                        else_branch = no () => (float[4, 4] y_low) { y_low = Identity (x_low) }>
        }""", w=np.abs(WEIGHT))  # fmt: skip
    feeds = {"c": np.bool_(True), "x": np.abs(RANDOM.normal(size=(4, 4))).astype(np.float32)}
    found = run(cast(model, tmp_path), **feeds)["y"]
    np.testing.assert_allclose(found, run(model, **feeds)["y"], rtol=0.02)


def test_details_count_nodes_in_bodies(tmp_path: Path) -> None:
    source = onnx_files.write(made(LOOP, w=WEIGHT), tmp_path / "in")
    details = precision("fp16").convert(source, tmp_path / "out", RECIPE, ()).details
    assert details["low_nodes"] == 2, "MatMul and Tanh, both inside the Loop"
    assert details["wide_nodes"] == {}


def test_what_only_moves_fp32_to_fp32_is_not_rounded_on_the_way(tmp_path: Path) -> None:
    """silero-seq in BF16: its filter was kept wide, and the Pad before it rounded the samples."""
    text = """
        agraph (float[2, 64] x) => (float[2, 1] y, float[2, 68] z) {
            p = Pad (x, amounts)
            r = Relu (p)
            s = ReduceSum <keepdims = 1> (r, axis)
            y = Sigmoid (s)
            z = Tanh (r)
        }"""
    model = made(text, amounts=np.int64([0, 2, 0, 2]), axis=np.int64([1]))
    x = (1 + RANDOM.random(size=(2, 64)) / 300).astype(np.float32)  # one number in BF16
    wanted = x.sum(1, keepdims=True, dtype=np.float64)
    changed = cast(model, tmp_path, "bf16")
    assert reads(changed, "Pad") == {TensorProto.FLOAT, TensorProto.INT64}
    assert reads(changed, "Relu") == {TensorProto.FLOAT}
    assert reads(changed, "Tanh") == {TensorProto.BFLOAT16}, "what reads it in 16 bits gets a Cast"
    summed = onnx.helper.make_tensor_value_info("s", TensorProto.FLOAT, None)
    changed.graph.output.append(summed)
    np.testing.assert_allclose(run(emulate(changed), x=x)["s"], wanted, rtol=1e-6)


def test_what_moves_to_or_from_16_bits_stays_in_16_bits(tmp_path: Path) -> None:
    text = """
        agraph (float[4, 4] x) => (float[4, 4] y) {
            t = Transpose (x)
            m = MatMul (t, w)
            r = Relu (m)
            y = Softmax (r)
        }"""
    changed = cast(made(text, w=WEIGHT), tmp_path)
    assert reads(changed, "Transpose") == reads(changed, "Relu") == {TensorProto.FLOAT16}
    assert sum(node.op_type == "Cast" for node in changed.graph.node) == 2


def test_a_rank_that_the_slimmer_got_wrong_is_not_believed(tmp_path: Path) -> None:
    """OnnxSlim says that a loss for each sample is a scalar, and the converter took its word."""
    text = """
        agraph (float[3, 5] x, int64[3] labels) => (float[3] y) {
            y = SoftmaxCrossEntropyLoss <reduction = "none"> (x, labels)
        }"""
    model = made(text, head='<ir_version: 10, opset_import: ["" : 13]>')
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, []))
    changed = cast(model, tmp_path, "bf16")
    assert [dim.dim_value for dim in changed.graph.output[0].type.tensor_type.shape.dim] == [3]


def test_bodies_whose_outputs_have_no_type_are_inferred_again(tmp_path: Path) -> None:
    """ONNX's own affine_grid, written out: its If had a dtype at the first inference only."""
    model = made(IF.replace("y = If", "i = If").replace("}>", "}> y = Tanh (i)"), w=WEIGHT)
    for graph in list(walk.graphs(model.graph))[1:]:
        for output in graph.output:
            output.ClearField("type")
    changed = cast(model, tmp_path)
    assert reads(changed, "MatMul") == reads(changed, "Tanh") == {TensorProto.FLOAT16}


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_an_operator_whose_dtype_onnx_does_not_infer_has_its_inputs_by_schema(
    tmp_path: Path, name: str
) -> None:
    text = """
        agraph (float[n, 4, 6] x) => (float[n, 4, 6] y) {
            g = GroupNormalization <num_groups = 2> (x, scale, bias)
            h = MatMul (g, w)
            y = Gelu (h)
        }"""
    weights = {"scale": np.ones(4), "bias": np.zeros(4), "w": np.eye(6)}
    made_of = {key: array.astype(np.float32) for key, array in weights.items()}
    model = made(text, head='<ir_version: 10, opset_import: ["" : 21]>', **made_of)
    changed = cast(model, tmp_path, name)
    low = TensorProto.FLOAT16 if name == "fp16" else TensorProto.BFLOAT16
    assert reads(changed, "MatMul") == reads(changed, "Gelu") == {low}


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_numbers_that_are_floats_by_default_stay_floats(tmp_path: Path, name: str) -> None:
    """A ConstantOfShape without a value makes FP32 zeros, and no attribute can be lowered."""
    model = made("""agraph (float[n, 4] x) => (float[n, 4] y) {
            s = Shape (x)
            zeros = ConstantOfShape (s)
            y = Add (x, zeros)
        }""")  # fmt: skip
    done = cast(model, tmp_path, name)
    x = RANDOM.normal(size=(3, 4)).astype(np.float32)
    assert types(done)["zeros"] == TensorProto.FLOAT
    np.testing.assert_allclose(run(emulate(done), x=x)["y"], x, rtol=1e-2)
