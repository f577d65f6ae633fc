"""Nodes that stay in FP32: by rule, by the ranges of the reference, by name, and by search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from tiny_models import document
from toy_graphs import evidence, made, run

from enginefarm.documents.recipe import Recipe
from enginefarm.errors import RecipeError
from enginefarm.graph.model import onnx_files, ort
from enginefarm.graph.model.emulate import emulate
from enginefarm.graph.model.onnx_shapes import infer_types
from enginefarm.graph.precisions import precision, ranges
from enginefarm.graph.precisions.evidence import Evidence
from enginefarm.graph.precisions.search import Search

RECIPE = Recipe.model_validate(document())
RANDOM = np.random.default_rng(0)


def convert(
    model: onnx.ModelProto,
    tmp_path: Path,
    name: str = "fp16",
    seen: Evidence | None = None,
    **recipe: Any,
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    source = onnx_files.write(model, tmp_path / "in")
    changed = RECIPE.model_copy(update=recipe)
    report = precision(name).convert(source, tmp_path / name, changed, (), seen)
    return onnx_files.read(report.path), report.details


def kept(details: dict[str, Any]) -> set[str]:
    return {item["op_type"] for item in details["kept_wide"]}


def decibels(model: onnx.ModelProto, converted: onnx.ModelProto, feeds: dict[str, Any]) -> float:
    """SQNR of the first output, every result of 16 bits rounded."""
    wanted = next(iter(run(model, feeds).values())).astype(np.float64)
    found = next(iter(run(emulate(converted), feeds).values())).astype(np.float64)
    lost = max(float(np.square(wanted - found).sum()), 1e-300)
    return float(10 * np.log10(np.square(wanted).sum() / lost))


LAYER_NORM = """agraph (float[n, 32] x) => (float[n, 32] y) {
    axis = Constant <value = int64[1] {-1}> ()
    mean = ReduceMean (x, axis)
    d = Sub (x, mean)
    square = Mul (d, d)
    variance = ReduceMean (square, axis)
    a = Add (variance, epsilon)
    root = Sqrt (a)
    y = Div (d, root)
}"""
MOMENTS = """agraph (float[n, 32] x) => (float[n, 32] y) {
    axis = Constant <value = int64[1] {-1}> ()
    mean = ReduceMean (x, axis)
    d = Sub (x, mean)
    square = Mul (x, x)
    both = ReduceMean (square, axis)
    other = Mul (mean, mean)
    variance = Sub (both, other)
    a = Add (variance, epsilon)
    root = Sqrt (a)
    inverse = Reciprocal (root)
    y = Mul (d, inverse)
}"""
RMS_NORM = """agraph (float[n, 32] x) => (float[n, 32] y) {
    axis = Constant <value = int64[1] {-1}> ()
    square = Pow (x, two)
    mean = ReduceMean (square, axis)
    a = Add (mean, epsilon)
    inverse = Pow (a, power)
    y = Mul (x, inverse)
}"""


@pytest.mark.parametrize("name", ["fp16", "bf16"])
@pytest.mark.parametrize("text", [LAYER_NORM, MOMENTS, RMS_NORM], ids=["layer", "moments", "rms"])
def test_a_normalization_that_is_written_out_stays_wide(
    tmp_path: Path, name: str, text: str
) -> None:
    constants = {"epsilon": np.float32(1e-6)}
    if text is RMS_NORM:
        constants |= {"two": np.float32(2), "power": np.float32(-0.5)}
    feeds = {"x": RANDOM.normal(400, 60, size=(8, 32)).astype(np.float32)}
    model = made(text, **constants)
    converted, details = convert(model, tmp_path, name)
    assert details["low_nodes"] == 0
    # What is left is the rounding of x itself, on both sides, and of nothing else.
    assert decibels(model, converted, feeds) > (50 if name == "fp16" else 30)


def test_a_mean_and_a_root_that_normalize_nothing_are_low(tmp_path: Path) -> None:
    model = made("""agraph (float[n, 32] x) => (float[n, 32] y) {
        h = MatMul (x, w)
        r = Sqrt (h)
        y = Mul (r, x)
    }""", w=np.abs(RANDOM.normal(size=(32, 32))).astype(np.float32))  # fmt: skip
    _, details = convert(model, tmp_path)
    assert details["kept_wide"] == []
    assert details["low_nodes"] == 3


def test_the_angles_of_positions_stay_wide(tmp_path: Path) -> None:
    """Rotary positions of 30,000 and times of 1,000: in FP16 they would be off by radians."""
    model = made("""agraph (int64[n] at, float[n, 1] t, float[n, 4] x) => (float[n, 4] y) {
            axis = Constant <value = int64[1] {1}> ()
            f = Cast <to = 1> (at)
            column = Unsqueeze (f, axis)
            angle = Mul (column, rate)
            c = Cos (angle)
            time = Mul (t, rate)
            s = Sin (time)
            a = Mul (c, s)
            y = Mul (a, x)
        }""", rate=np.array([1, 0.1, 0.01, 0.001], np.float32))  # fmt: skip
    feeds = {
        "at": RANDOM.integers(3000, 30000, size=64),
        "t": RANDOM.uniform(0, 1000, size=(64, 1)).astype(np.float32),
        "x": RANDOM.normal(size=(64, 4)).astype(np.float32),
    }
    for name, least in (("fp16", 55), ("bf16", 38)):
        converted, details = convert(model, tmp_path, name)
        assert decibels(model, converted, feeds) > least
        assert {"Mul", "Cos", "Sin"} <= kept(details)


def test_what_mod_wraps_stays_wide(tmp_path: Path) -> None:
    """In BF16 one number in a hundred would be on the other side of a jump."""
    model = made("""agraph (float[n, 4] x, int64[n, 4] i) => (float[n, 4] y, int64[n, 4] j) {
            m = Mod <fmod = 1> (x, turn)
            y = Mul (m, m)
            j = Mod (i, i)
        }""", turn=np.float32(0.7))  # fmt: skip
    feeds = {
        "x": RANDOM.normal(size=(64, 4)).astype(np.float32),
        "i": RANDOM.integers(1, 9, size=(64, 4)),
    }
    converted, details = convert(model, tmp_path, "bf16")
    assert kept(details) == {"Mod"}
    assert len(details["kept_wide"]) == 1, "the Mod of integers is exact in any case"
    assert decibels(model, converted, feeds) > 38


SPECTRUM = """agraph (float[n, 1, 512] x) => (float[n, 16, s] y) {
    padded = Pad (x, pads)
    filtered = Conv <strides = [64]> (padded, bands)
    power = Mul (filtered, filtered)
    most = Max (power, floor)
    shown = Log (most)
    y = Conv (shown, w)
}"""


def spectrum(text: str = SPECTRUM) -> onnx.ModelProto:
    """Sixteen bands of a sound, the quiet ones a thousandth of the loud one."""
    t = np.arange(128)
    bands = np.stack([np.cos(2 * np.pi * k * t / 128) for k in range(4, 20)]) * np.hanning(128)
    return made(
        text,
        bands=bands[:, None].astype(np.float32),
        pads=np.array([0, 0, 64, 0, 0, 64]),
        floor=np.array(1e-12, np.float32),
        w=RANDOM.normal(size=(16, 16, 1)).astype(np.float32),
    )


def sound() -> dict[str, Any]:
    t = np.arange(512)
    loud, quiet = (np.sin(2 * np.pi * k * t / 128) for k in (6, 14))
    made = np.stack([loud * size + 1e-4 * quiet for size in (0.2, 0.5, 0.9)])
    return {"x": made[:, None].astype(np.float32)}


def test_a_spectrum_stays_wide_up_to_its_logarithm(tmp_path: Path) -> None:
    """basic-pitch: the quiet bands of a constant-Q transform drowned in the rounding of the loud
    ones, and FP16 was rejected at 29 dB; with the transform wide it has 57."""
    model = spectrum()
    converted, details = convert(model, tmp_path)
    assert kept(details) == {"Pad", "Conv", "Mul", "Max", "Log"}
    assert details["low_nodes"] == 1  # the network behind it
    assert decibels(model, converted, sound()) > 55
    reasons = {item["reason"] for item in details["kept_wide"]}
    assert reasons == {"it computes a spectrum whose logarithm is taken"}


@pytest.mark.parametrize(
    ("was", "instead"),
    [
        # A network, and its log-probabilities at the end.
        ("power = Mul (filtered, filtered)", "r = Relu (filtered) power = Mul (r, r)"),
        # No power is taken: the logarithm of something else.
        ("power = Mul (filtered, filtered)", "power = Exp (filtered)"),
    ],
)
def test_a_logarithm_that_is_of_no_spectrum_keeps_nothing_wide(
    tmp_path: Path, was: str, instead: str
) -> None:
    _, details = convert(spectrum(SPECTRUM.replace(was, instead)), tmp_path)
    assert details["kept_wide"] == []


OVERFLOW = """agraph (float[n, 8] x) => (float[n, 8] y) {
    h = MatMul (x, w)
    big = Mul (h, h)
    small = Mul (big, tiny)
    y = MatMul (small, w)
}"""


def overflow() -> tuple[onnx.ModelProto, dict[str, Any]]:
    weight = RANDOM.normal(size=(8, 8)).astype(np.float32)
    model = made(OVERFLOW, w=weight, tiny=np.float32(2.0**-12))
    return model, {"x": RANDOM.normal(0, 300, size=(16, 8)).astype(np.float32)}


def test_a_value_that_leaves_fp16_on_the_reference_data_keeps_its_nodes_wide(
    tmp_path: Path,
) -> None:
    model, feeds = overflow()
    converted, _ = convert(model, tmp_path)
    assert not np.isfinite(next(iter(run(emulate(converted), feeds).values()))).all()
    converted, details = convert(model, tmp_path, seen=evidence(model, tmp_path, feeds))
    assert [item["op_type"] for item in details["kept_wide"]] == ["Mul", "Mul"]
    assert "big reaches" in details["kept_wide"][0]["reason"]
    assert decibels(model, converted, feeds) > 50
    _, details = convert(model, tmp_path, "bf16", evidence(model, tmp_path, feeds))
    assert details["kept_wide"] == [], "BF16 has FP32's range"


def test_what_grows_in_the_body_of_a_loop_keeps_the_body_wide(tmp_path: Path) -> None:
    text = """g (float[n, 4] x) => (float[n, 4] y) {
        t = MatMul(x, w)
        big = Loop <body = b (int64 i, bool c, float[n, 4] v) => (bool go, float[n, 4] grown) {
            go = Identity(c)
            grown = Mul(v, ten)
        }> (steps, go_on, t)
        y = Mul(big, small)
    }"""
    model = made(
        text,
        w=np.eye(4, dtype="f"),
        steps=np.int64(7),
        go_on=np.True_,
        ten=np.float32(10),
        small=np.float32(1e-4),
    )
    feeds = {"x": RANDOM.normal(size=(3, 4)).astype("f")}
    converted, details = convert(model, tmp_path, seen=evidence(model, tmp_path, feeds))
    found = run(emulate(converted), feeds)["y"]
    np.testing.assert_allclose(found, 1000 * feeds["x"], rtol=2e-3)
    assert {"Loop", "Mul"} <= {node["op_type"] for node in details["kept_wide"]}


def test_positions_times_frequencies_stay_wide_without_a_wide_matmul(tmp_path: Path) -> None:
    text = """g (int64[b, 1, s] positions, float[b, s, 8] x) => (float[b, s, 8] y) {
        p = Cast <to = 1> (positions)
        a = MatMul(frequencies, p)
        angle = Transpose <perm = [0, 2, 1]> (a)
        c = Cos(angle)
        y = Mul(c, x)
    }"""
    frequencies = (10000.0 ** (-np.arange(8) / 8)).astype("f").reshape(1, 8, 1)
    model = made(text, frequencies=frequencies)
    feeds = {
        "positions": RANDOM.integers(60_000, 130_000, (2, 1, 5)),
        "x": RANDOM.normal(size=(2, 5, 8)).astype("f"),
    }
    wanted = run(model, feeds)["y"]
    for name in ("fp16", "bf16"):
        converted, details = convert(model, tmp_path, name)
        assert "MatMul" not in details["wide_operators"]
        np.testing.assert_allclose(run(emulate(converted), feeds)["y"], wanted, atol=0.03)


def test_values_below_the_range_of_fp16_stay_wide(tmp_path: Path) -> None:
    model = made("""agraph (float[n, 8] x) => (float[n, 8] y) {
        a = MatMul (x, w)
        b = Mul (a, c)
        d = Relu (b)
        y = MatMul (d, w)
    }""", w=RANDOM.normal(0, 1e-4, size=(8, 8)).astype(np.float32), c=np.float32(1e-3))  # fmt: skip
    feeds = {"x": RANDOM.normal(size=(16, 8)).astype(np.float32)}
    converted, _ = convert(model, tmp_path, seen=evidence(model, tmp_path, feeds))
    assert decibels(model, converted, feeds) > 50


def test_names_patterns_and_operators_of_the_recipe_stay_wide(tmp_path: Path) -> None:
    model = made("""agraph (float[n, 8] x) => (float[n, 8] y) {
        [first] a = MatMul (x, w)
        [second] b = Tanh (a)
        [block_1] c = Sigmoid (b)
        y = Softmax (c)
    }""", w=RANDOM.normal(size=(8, 8)).astype(np.float32))  # fmt: skip
    for names, wanted in (
        (("first",), {"MatMul"}),
        (("Tanh", "Softmax"), {"Tanh", "Softmax"}),
        (("block_*",), {"Sigmoid"}),
    ):
        converted, details = convert(model, tmp_path, keep_wide=names)
        assert kept(details) == wanted == set(details["wide_nodes"])
    types = {v.name: v.type.tensor_type.elem_type for v in converted.graph.value_info}
    sigmoid = next(node for node in converted.graph.node if node.op_type == "Sigmoid")
    assert types[sigmoid.output[0]] == TensorProto.FLOAT
    with pytest.raises(RecipeError, match=r"keep_wide\[1\].*'frist'(?s:.*)did you mean first\?"):
        convert(model, tmp_path, keep_wide=("second", "frist"))


def test_a_search_keeps_the_fewest_noisy_nodes() -> None:
    """Two of 64 nodes make nearly all of the noise; the budget needs both of them wide."""
    own = {f"n{i}": 1e-8 for i in range(64)} | {"n17": 1e-2, "n42": 1e-3}

    def noise(wide: frozenset[str]) -> float:
        return sum(value for name, value in own.items() if name not in wide)

    search = Search(noise, lambda wide: noise(wide) < 1e-4, limit=40)
    found = search.run(list(own))
    assert list(found) == ["n17", "n42"]
    assert search.tries <= 40
    gains = list(found.values())
    assert gains[0] == pytest.approx(42, abs=1)
    assert gains[1] == pytest.approx(32, abs=1)


def test_a_search_gives_up_where_no_set_is_enough() -> None:
    assert Search(lambda _: 1.0, lambda _: False, limit=40).run(["a", "b"]) == {}


def test_a_search_that_was_interrupted_measures_nothing_twice(tmp_path: Path) -> None:
    calls: list[frozenset[str]] = []

    def noise(wide: frozenset[str]) -> float:
        calls.append(wide)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return float("inf") if "n3" not in wide else 1e-3

    def search() -> Search:
        return Search(noise, lambda wide: "n3" in wide, limit=20, memory=tmp_path / "memory")

    names = [f"n{i}" for i in range(16)]
    with pytest.raises(KeyboardInterrupt):
        search().run(names)
    found = search().run(names)
    assert found == {"n3": None}, "infinite without: no figure"
    assert len(set(calls)) == len(calls) - 1, "only the one that was interrupted ran again"


def test_the_search_meets_the_budget_on_a_graph(tmp_path: Path) -> None:
    """Softmax of logits around 9,000 that are apart by less than 8: their sum must stay wide."""
    model = made("""agraph (float[n, 8] x) => (float[n, 8] y) {
        [head] h = MatMul (x, w)
        [shift] s = Add (h, nine)
        [scores] y = Softmax (s)
    }""", w=RANDOM.normal(size=(8, 8)).astype(np.float32), nine=np.float32(9000))  # fmt: skip
    feeds = {"x": RANDOM.normal(size=(32, 8)).astype(np.float32)}
    plain, _ = convert(model, tmp_path)
    assert decibels(model, plain, feeds) < 20
    seen = evidence(
        model,
        tmp_path,
        feeds,
        judge=lambda path: decibels(model, onnx_files.read(path), feeds) > 50,
        tries=20,
    )
    converted, details = convert(model, tmp_path, seen=seen)
    assert decibels(model, converted, feeds) > 50
    assert [item["node"] for item in details["kept_wide"]] == ["shift", "scores"]
    assert all(item["reason"].startswith("the search") for item in details["kept_wide"])


def test_names_and_the_search_are_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    use = precision("fp16").use(RECIPE, None)
    for change in ({"keep_wide": ("Mul",)}, {"search_tries": 0}, {"search_tries": 5}):
        assert precision("fp16").use(RECIPE.model_copy(update=change), None) != use
    monkeypatch.setattr("enginefarm.graph.verification.verify.METHOD", 1000)
    assert precision("fp16").use(RECIPE, None) != use, "what judges the search decides the graph"


NAIVE_SOFTMAX = """agraph (float[n, 32] x) => (float[n, 32] y) {
    axis = Constant <value = int64[1] {-1}> ()
    e = Exp (x)
    sum = ReduceSum (e, axis)
    d = Div (e, sum)
    y = MatMul (d, w)
}"""


@pytest.mark.parametrize(("largest", "wide"), [(7.0, True), (3.0, False)])
def test_an_exp_stays_wide_where_other_data_may_leave_fp16(
    tmp_path: Path, largest: float, wide: bool
) -> None:
    """exp(7) is 1,097, and exp(12) no number of FP16: the sum is infinite, and y NaN."""
    model = made(NAIVE_SOFTMAX, w=np.eye(32, dtype=np.float32))
    x = np.linspace(-1, largest, 64, dtype=np.float32).reshape(2, 32)
    changed, details = convert(model, tmp_path, seen=evidence(model, tmp_path, {"x": x}))
    assert ("Exp" in kept(details)) is wide
    if wide:
        assert decibels(model, changed, {"x": x * 1.7}) > 50


def test_ranges_are_seen_without_a_second_copy_of_the_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight = RANDOM.normal(size=(256, 256)).astype(np.float32)
    model = made("g (float[2, 256] x) => (float[2, 256] y) { y = MatMul(x, w) }", w=weight)
    infer_types(model)
    real, written = ort.session_of, list[int]()

    def session_of(given: onnx.ModelProto, **options: Any) -> Any:
        written.append(given.ByteSize())
        return real(given, **options)

    monkeypatch.setattr(ort, "session_of", session_of)
    x = RANDOM.normal(size=(2, 256)).astype(np.float32)
    largest = ranges.observe(model, [{"x": x}])
    assert largest["x"] == np.abs(x).max()
    assert largest["y"] == pytest.approx(np.abs(x @ weight).max(), rel=1e-5)
    assert written[0] < weight.nbytes / 2, "a copy of the weights was handed over"
    np.testing.assert_array_equal(numpy_helper.to_array(model.graph.initializer[0]), weight)
