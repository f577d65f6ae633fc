"""Ranges: entropy clips, memory does not grow, bad data names the tensor."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from enginefarm.documents.data import Calibration, Data
from enginefarm.errors import CalibrationError
from enginefarm.graph.precisions import calibration
from enginefarm.graph.precisions.calibration import AbsHistogram

OPTIONS = Calibration(data=Data(path="d.npz"), method="entropy")


def histogram(*pieces: np.ndarray) -> AbsHistogram:
    made = AbsHistogram()
    for piece in pieces:
        made.add(piece)
    return made


def tailed(count: int = 200_000, seed: int = 0) -> np.ndarray:
    """A bell with a few far outliers: what activations look like."""
    random = np.random.default_rng(seed)
    values = random.normal(size=count).astype(np.float32)
    values[:20] = 40.0
    return values


def test_entropy_clips_where_minmax_does_not() -> None:
    made = histogram(tailed())
    assert calibration.minmax(made, OPTIONS) == 40.0
    assert 2.5 < calibration.entropy(made, OPTIONS) < 10, "outliers are cut, the bell is not"


def test_entropy_of_a_handful_of_numbers_does_not_clip_at_random() -> None:
    few = tailed(count=2000)
    assert calibration.entropy(histogram(few), OPTIONS) == 40.0


def test_entropy_keeps_a_uniform_range_whole() -> None:
    values = np.random.default_rng(0).uniform(-3, 3, 200_000).astype(np.float32)
    assert calibration.entropy(histogram(values), OPTIONS) > 2.9


def test_entropy_beats_minmax_in_quantization_noise() -> None:
    values = tailed()
    made = histogram(values)

    def noise(amax: float) -> float:
        scale = amax / 127
        inner = values[20:]  # not the outliers, which entropy gives up on purpose
        back = np.clip(np.rint(inner / scale), -127, 127) * scale
        return float(np.square(back - inner).mean())

    assert noise(calibration.entropy(made, OPTIONS)) < noise(calibration.minmax(made, OPTIONS)) / 10


def test_a_percentile_leaves_out_what_it_says() -> None:
    values = np.linspace(0, 1, 100_000, dtype=np.float32)
    options = OPTIONS.model_copy(update={"percentile": 90.0})
    assert calibration.percentile(histogram(values), options) == pytest.approx(0.9, abs=1e-3)
    assert (
        calibration.percentile(histogram(values), OPTIONS.model_copy(update={"percentile": 100}))
        == 1
    )


def test_pieces_in_any_order_and_size_give_nearly_the_same_range() -> None:
    values = tailed()
    whole = histogram(values)
    growing = histogram(*np.array_split(np.sort(np.abs(values)), 7))
    assert growing.counts is not None
    assert growing.counts.sum() == values.size
    for method in calibration.METHODS.values():
        wanted = method(whole, OPTIONS)
        assert method(growing, OPTIONS) == pytest.approx(wanted, rel=0.2)


def test_zeros_and_nothing_have_a_range_of_zero() -> None:
    for made in (AbsHistogram(), histogram(np.zeros(10, np.float32))):
        assert [method(made, OPTIONS) for method in calibration.METHODS.values()] == [0, 0, 0]


def network(width: int = 256) -> ModelProto:
    weight = np.random.default_rng(0).normal(size=(width, width)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width])],
            [numpy_helper.from_array(weight, "w")],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


def batches(count: int, rows: int = 512, width: int = 256) -> Iterator[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    for _ in range(count):
        yield {"x": random.normal(size=(rows, width)).astype(np.float32)}


def test_inputs_inner_tensors_and_outputs_get_a_range() -> None:
    options = OPTIONS.model_copy(update={"method": "minmax"})
    seen = calibration.histograms(network(), ("x", "h", "y"), batches(3), options)
    found = calibration.chosen(seen, options)
    x = np.concatenate([batch["x"] for batch in batches(3)])
    assert found["x"] == np.abs(x).max()
    assert found["h"] >= found["y"] > found["x"]


def test_memory_does_not_grow_with_the_number_of_batches() -> None:
    """ONNX Runtime's own outputs are seen by tracemalloc too: they are numpy arrays."""
    peaks = []
    for count in (4, 40):  # after the first, one is computed while another is looked at
        tracemalloc.start()
        calibration.histograms(network(), ("x", "h", "y"), batches(count), OPTIONS)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.2, f"{peaks} bytes for 4 and 40 batches"


def test_nan_inside_the_network_names_the_tensor_and_the_batch() -> None:
    bad = list(batches(2))
    bad[1]["x"][:] = 3e38
    with pytest.raises(CalibrationError, match="batch 1: tensor 'h' holds NaN or infinity"):
        calibration.histograms(network(), ("x", "h"), bad, OPTIONS)


def test_no_batch_and_a_batch_of_another_shape() -> None:
    with pytest.raises(CalibrationError, match="has no batch"):
        calibration.histograms(network(), ("h",), [], OPTIONS)
    with pytest.raises(CalibrationError, match="calibration batch 0"):
        calibration.histograms(network(), ("h",), batches(1, width=8), OPTIONS)
