"""INT8 and FP8: the choice of the method and of the operators, branches, and names."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from tiny_models import document
from toy_graphs import evidence, made, run

from enginefarm.documents.recipe import Recipe
from enginefarm.documents.thresholds import Budget
from enginefarm.errors import CalibrationError, PrecisionError
from enginefarm.graph.model import onnx_files, walk
from enginefarm.graph.model.emulate import emulate
from enginefarm.graph.precisions import precision
from enginefarm.graph.precisions.evidence import Evidence

RECIPE = Recipe.model_validate(document())
RANDOM = np.random.default_rng(0)
WEIGHT = RANDOM.normal(0, 0.2, size=(8, 8, 3, 3)).astype(np.float32)
SQUARE = RANDOM.normal(0, 0.3, size=(8, 8)).astype(np.float32)
START = RANDOM.bit_generator.state


@pytest.fixture(autouse=True)
def same_numbers_in_any_order() -> None:
    """A test's data does not depend on which tests ran before it."""
    RANDOM.bit_generator.state = START


def convert(
    model: onnx.ModelProto,
    tmp_path: Path,
    batches: list[dict[str, Any]],
    seen: Evidence | None = None,
    *,
    method: str = "auto",
    name: str = "int8",
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    source = onnx_files.write(model, tmp_path / "in")
    assert RECIPE.calibration is not None
    calibration = RECIPE.calibration.model_copy(update={"method": method})
    recipe = RECIPE.model_copy(update={"calibration": calibration})
    report = precision(name).convert(source, tmp_path / name, recipe, batches, seen)
    return onnx_files.read(report.path), report.details


def decibels(model: onnx.ModelProto, converted: onnx.ModelProto, feeds: dict[str, Any]) -> float:
    wanted = run(model, feeds)["y"].astype(np.float64)
    found = run(emulate(converted), feeds)["y"].astype(np.float64)
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - found).sum()))


LINEAR = "agraph (float[n, 8] x) => (float[n, 8] y) { y = MatMul (x, w) }"


def test_auto_takes_the_method_with_the_least_noise(tmp_path: Path) -> None:
    """Outliers that do not come again are clipped; values that do are not."""
    rare = RANDOM.normal(size=(4096, 8)).astype(np.float32)
    usual = rare[:256].copy()
    rare[0, 0] = 400.0
    model = made(LINEAR, w=SQUARE)
    found: dict[str, float] = {}
    for method in ("auto", "minmax", "percentile", "entropy"):
        seen = evidence(model, tmp_path, {"x": usual})
        converted, details = convert(model, tmp_path, [{"x": rare}], seen, method=method)
        found[method] = decibels(model, converted, {"x": usual})
        if method == "auto":
            assert details["method"] != "minmax"
    assert found["auto"] == max(found.values())
    steady = np.sign(usual) * 3
    steady[:, 0] = 40.0
    converted, details = convert(
        model, tmp_path, [{"x": steady}], evidence(model, tmp_path, {"x": steady})
    )
    assert details["method"] == "minmax"


def test_auto_sees_class_scores_behind_boxes_of_larger_numbers(tmp_path: Path) -> None:
    """A detector's output: what clips the scores is not taken because the boxes are right."""
    model = made("""agraph (float[n, 8, 16] x) => (float[n, 8, 16] y) {
        h = Conv <kernel_shape = [1]> (x, w)
        y = Mul (h, size)
    }""", w=np.eye(8, dtype=np.float32)[:, :, None],
        size=np.array([1000] * 4 + [1] * 4, np.float32)[:, None])  # fmt: skip
    x = RANDOM.uniform(0, 1, size=(64, 8, 16)).astype(np.float32)
    x[:, 4:] *= (RANDOM.uniform(size=(64, 4, 16)) < 0.002) * 30.0  # rare, large: what matters
    seen = evidence(model, tmp_path, {"x": x})
    converted, _ = convert(model, tmp_path, [{"x": x}] * 2, seen)
    wanted, found = (run(m, {"x": x})["y"][:, 4:] for m in (model, emulate(converted)))
    there = wanted > 5
    np.testing.assert_allclose(found[there], wanted[there], rtol=0.1)


RESIDUAL = """agraph (float[n, 8, 8, 8] x) => (float[n, 8, 4, 4] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w)
    b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (b, w)
    d = Add (c, x)
    e = Relu (d)
    p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (e)
    y = Conv <pads = [1, 1, 1, 1]> (p, w)
}"""
ATTENTION = """agraph (float[n, 4, 8] x) => (float[n, 4, 8] y) {
    q = MatMul (x, w)
    k = Transpose <perm = [0, 2, 1]> (q)
    s = MatMul (q, k)
    p = Softmax (s)
    y = MatMul (p, q)
}"""


def quantized(model: onnx.ModelProto) -> Counter[str]:
    made_by = {n.output[0]: n.op_type for g in walk.graphs(model.graph) for n in g.node}
    return Counter(
        node.op_type
        for graph in walk.graphs(model.graph)
        for node in graph.node
        if node.op_type != "QuantizeLinear"
        and made_by.get(node.input[0] if node.input else "") == "DequantizeLinear"
    )


def test_pooling_is_quantized_where_it_costs_nothing_and_other_groups_where_they_are_cheap(
    tmp_path: Path,
) -> None:
    feeds = {"x": RANDOM.normal(size=(16, 8, 8, 8)).astype(np.float32)}
    model = made(RESIDUAL, w=WEIGHT)
    plain, details = convert(model, tmp_path, [feeds], method="minmax")
    assert quantized(plain) == {"Conv": 3}, "without a reference nothing says what it costs"
    assert details["quantizable_operators"] == 5
    converted, details = convert(
        model, tmp_path, [feeds], evidence(model, tmp_path, feeds), method="minmax"
    )
    assert quantized(converted)["MaxPool"] == 1, "its input has the scale of the next Conv"
    assert details["quantized_operators"] == sum(quantized(converted).values())
    assert decibels(model, converted, feeds) > decibels(model, plain, feeds) - 1.1


def test_products_of_activations_that_would_ruin_the_output_stay_in_fp16(tmp_path: Path) -> None:
    """Scores of a thousand and more between which Softmax chooses: 8 bits are too few."""
    feeds = {"x": RANDOM.normal(0, 4, size=(32, 4, 8)).astype(np.float32)}
    feeds["x"][0] *= 8
    model = made(ATTENTION, w=SQUARE)
    seen = evidence(model, tmp_path, feeds)
    converted, details = convert(model, tmp_path, [feeds], seen, method="minmax")
    plain, _ = convert(model, tmp_path, [feeds], method="minmax")
    assert details["quantized_operators"] >= 1
    assert decibels(model, converted, feeds) > decibels(model, plain, feeds) - 1.1


BRANCHES = """agraph (bool c, float[4, 8] x) => (float[4, 8] y) {
    y = If (c) <
        then_branch = yes () => (float[4, 8] o) { h = Tanh (x) o = MatMul (h, w) },
        else_branch = no () => (float[4, 8] o) { h = Sigmoid (x) o = MatMul (h, w) }>
}"""


def test_operators_in_the_branches_of_an_if_are_quantized(tmp_path: Path) -> None:
    model = made(BRANCHES, w=SQUARE)
    x = RANDOM.normal(size=(4, 8)).astype(np.float32)
    both = [{"c": np.asarray(c), "x": x} for c in (True, False)]
    converted, details = convert(model, tmp_path, both, method="minmax")
    assert details["quantized_operators"] == 2
    for feeds in both:
        assert decibels(model, converted, feeds) > 30
    weights = [t for t in converted.graph.initializer if t.data_type == TensorProto.INT8 and t.dims]
    assert len(weights) >= 1
    _, details = convert(model, tmp_path, both[:1], method="minmax")
    assert details["quantized_operators"] == 1, "the branch that no batch took has no range"


def test_data_that_reaches_nothing_is_told(tmp_path: Path) -> None:
    model = made(BRANCHES.replace("o = MatMul (h, w) }>", "o = Neg (h) }>"), w=SQUARE)
    feeds = {"c": np.asarray(False), "x": np.zeros((4, 8), np.float32)}
    with pytest.raises(CalibrationError, match="reaches no operator"):
        convert(model, tmp_path, [feeds], method="minmax")


def test_names_of_the_model_that_ours_would_be(tmp_path: Path) -> None:
    """Detectors have an input `image_scale`; weights may be called `w_scale`."""
    model = made("""agraph (float[n, 8] x, float[n, 1] x_scale) => (float[n, 8] y) {
        h = MatMul (x, w)
        g = Mul (h, w_scale)
        x_quantized = Div (g, x_scale)
        y = MatMul (x_quantized, w)
    }""", w=SQUARE, w_scale=np.full(8, 2, np.float32))  # fmt: skip
    feeds = {
        "x": RANDOM.normal(size=(16, 8)).astype(np.float32),
        "x_scale": RANDOM.uniform(0.5, 2, size=(16, 1)).astype(np.float32),
    }
    for name in ("int8", "fp8"):
        converted, _ = convert(model, tmp_path, [feeds], method="minmax", name=name)
        assert decibels(model, converted, feeds) > 20


def test_a_kept_operator_is_neither_quantized_nor_narrow(tmp_path: Path) -> None:
    model = made("""agraph (float[n, 8] x) => (float[n, 8] y) {
        [first] h = MatMul (x, w)
        [second] y = MatMul (h, w)
    }""", w=SQUARE)  # fmt: skip
    source = onnx_files.write(model, tmp_path / "in")
    recipe = RECIPE.model_copy(update={"keep_wide": ("first",)})
    feeds = {"x": RANDOM.normal(size=(16, 8)).astype(np.float32)}
    report = precision("int8").convert(source, tmp_path / "out", recipe, [feeds])
    assert report.details["quantized_operators"] == 1
    assert report.details["wide_nodes"] == {"MatMul": 1}


def test_depthwise_convolutions_stay_in_fp16_in_fp8(tmp_path: Path) -> None:
    text = """agraph (float[n, 8, 8, 8] x) => (float[n, 8, 8, 8] y) {
        h = Conv <pads = [1, 1, 1, 1]> (x, w)
        y = Conv <pads = [1, 1, 1, 1], group = 8> (h, d)
    }"""
    feeds = {"x": RANDOM.normal(size=(2, 8, 8, 8)).astype(np.float32)}
    model = made(text, w=WEIGHT, d=WEIGHT[:, :1])
    for name, count in (("int8", 2), ("fp8", 1)):
        _, details = convert(model, tmp_path, [feeds], method="minmax", name=name)
        assert details["quantized_operators"] == count
    first = "h = Conv <pads = [1, 1, 1, 1]> (x, w)"
    alone = made(text.replace(first, "h = Relu (x)"), d=WEIGHT[:, :1])
    with pytest.raises(PrecisionError, match="fp8: there is nothing to quantize"):
        convert(alone, tmp_path, [feeds], name="fp8")


@pytest.mark.parametrize("name", ["int8", "fp16"])
def test_a_search_that_would_keep_everything_wide_leaves_the_judgement_to_verification(
    tmp_path: Path, name: str
) -> None:
    model = made("agraph (float[n, 8] x) => (float[n, 8] y) { [only] y = MatMul (x, w) }", w=SQUARE)
    source = onnx_files.write(model, tmp_path / "in")
    feeds = {"x": RANDOM.normal(size=(16, 8)).astype(np.float32)}

    def judge(graph: Path) -> bool:
        """A budget that nothing but the graph without this precision meets."""
        graph_made = onnx_files.read(graph)
        kinds = {node.op_type for node in graph_made.graph.node}
        narrow = {tensor.data_type for tensor in graph_made.graph.initializer}
        return "QuantizeLinear" not in kinds and (
            name == "int8" or narrow == {onnx.TensorProto.FLOAT}
        )

    seen = evidence(model, tmp_path, feeds, judge=judge, tries=20)
    report = precision(name).convert(source, tmp_path / "out", RECIPE, [feeds], seen)
    assert report.details["kept_wide"] == []
    assert report.details.get("quantized_operators", 1) == 1
    assert report.details["low_nodes"]


def test_a_search_leaves_the_operator_that_ruins_int8_in_fp16(tmp_path: Path) -> None:
    model = made("""agraph (float[n, 8] x) => (float[n, 8] y) {
        [first] h = MatMul (x, w)
        e = Mul (h, scale)
        [second] g = MatMul (e, w)
        [third] y = MatMul (g, w)
    }""", w=SQUARE, scale=np.array([300, 1, 1, 1, 1, 1, 1, 1], np.float32))  # fmt: skip
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(
            np.where(np.arange(8)[:, None] == 0, 1e-3, SQUARE).astype("f4"), "w"
        )
    )
    feeds = {"x": RANDOM.normal(size=(64, 8)).astype(np.float32)}
    plain, _ = convert(model, tmp_path, [feeds], method="minmax")
    least = decibels(model, plain, feeds) + 6
    accepted: list[list[str]] = []

    def judge(path: Path) -> bool:
        tried = onnx_files.read(path)
        passes = decibels(model, tried, feeds) > least
        accepted.extend([[node.op_type for node in tried.graph.node]] * passes)
        return passes

    seen = evidence(model, tmp_path, feeds, judge=judge, tries=30)
    converted, details = convert(model, tmp_path, [feeds], seen, method="minmax")
    assert decibels(model, converted, feeds) > least
    assert [item["node"] for item in details["kept_wide"]] == ["second"]
    # What comes out is what was judged: the operator is in FP16, and not in FP32 between casts.
    assert [node.op_type for node in converted.graph.node] in accepted
    assert details["wide_nodes"] == {}


THREE = """agraph (float[n, 8] x) => (float[n, 8] y) {
        [first] h = MatMul (x, w)
        [second] g = MatMul (h, w)
        [third] y = MatMul (g, w)
    }"""


def quantizers(path: Path) -> int:
    kinds = [node.op_type for node in onnx_files.read(path).graph.node]
    return sum(kind == "QuantizeLinear" for kind in kinds)


def left_in_8_bits(tmp_path: Path, *, judge: int, careful: int, always: bool) -> object:
    """How many operators of three are in 8 bits, where the judges allow that many each."""
    model = made(THREE, w=SQUARE)
    feeds = {"x": RANDOM.normal(size=(16, 8)).astype(np.float32)}
    seen = evidence(
        model,
        tmp_path,
        feeds,
        judge=lambda path: quantizers(path) <= judge,
        careful=lambda path: quantizers(path) <= careful,
        always=always,
        tries=30,
    )
    _, details = convert(model, tmp_path, [feeds], seen, method="minmax")
    return details["quantized_operators"]


@pytest.mark.parametrize(("careful", "left"), [(1, 1), (0, 2)])
def test_a_search_leaves_room_for_other_data_where_that_leaves_something_in_8_bits(
    tmp_path: Path, careful: int, left: int
) -> None:
    """silero-vad in INT8: 12 dB on its verification data, as the budget asks, and 8.9 on other.
    careful: how many operators the judge with half the budget allows in 8 bits."""
    assert left_in_8_bits(tmp_path, judge=2, careful=careful, always=False) == left


@pytest.mark.parametrize(
    ("careful", "judge", "left"),
    [(3, 3, 3), (1, 3, 1), (0, 3, 3), (0, 2, 2)],
    ids=["within its margin", "searched", "no margin is reachable", "over its budget"],
)
def test_a_graph_that_meets_its_budget_without_its_margin_is_searched(
    tmp_path: Path, careful: int, judge: int, left: int
) -> None:
    """silero-vad in FP8: 15 dB on all of its data, and 10 on single batches of other data.
    careful, judge: how many operators each allows in 8 bits."""
    assert left_in_8_bits(tmp_path, judge=judge, careful=careful, always=True) == left


def test_a_part_of_a_budget_is_for_errors_of_that_part() -> None:
    budget = Budget(min_cosine=0.98, max_relative_l2=0.2, max_abs=4.0, min_top1_agreement=0.9)
    half = budget.part(0.5)
    assert (half.max_relative_l2, half.max_abs, half.min_top1_agreement) == (0.1, 2.0, 0.9)
    assert half.min_cosine == pytest.approx(0.995)
    assert half.part_relative_l2 == pytest.approx(0.3)
    assert budget.part(1.0) == budget


TWO = """agraph (float[n, 8] x) => (float[n, 8] y) {
    a = MatMul (x, w)
    b = Mul (a, factor)
    y = MatMul (b, v)
}"""


@pytest.mark.parametrize("what", ["weights", "inputs", "always 0"])
@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_what_is_too_small_for_a_scale_in_fp16_is_not_quantized(
    tmp_path: Path, name: str, what: str
) -> None:
    """TensorRT-RTX 1.7 takes no product of which one scale is FP32 and the other FP16: a scale
    below 6.1e-5 stays FP32, as it is not FP16's."""
    factor = np.float32({"weights": 1, "inputs": 1e-4, "always 0": 0}[what])
    last = SQUARE * np.float32(0.001 if what == "weights" else 1)
    x = RANDOM.normal(size=(16, 8)).astype(np.float32)
    model = made(TWO, w=SQUARE, v=last, factor=factor)
    converted, details = convert(model, tmp_path, [{"x": x}], method="percentile", name=name)
    assert details["quantized_operators"] == 1
    scales = [n.input[1] for n in walk.nodes(converted.graph) if n.op_type == "DequantizeLinear"]
    kinds = {t.name: t.data_type for t in converted.graph.initializer}
    assert {kinds[one] for one in scales} == {TensorProto.FLOAT16}


def test_a_model_whose_weights_are_all_too_small_says_so(tmp_path: Path) -> None:
    x = RANDOM.normal(size=(16, 8)).astype(np.float32)
    with pytest.raises(PrecisionError, match=r"are below 0\.0078"):
        convert(made(LINEAR, w=SQUARE * np.float32(1e-4)), tmp_path, [{"x": x}])
