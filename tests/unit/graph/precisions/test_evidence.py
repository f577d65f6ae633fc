"""What a search is judged by: in 8 bits the calibration data, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from tiny_models import document

from enginefarm.documents.recipe import Recipe
from enginefarm.graph.order import Order
from enginefarm.graph.precisions import evidence, kept_wide, ranges
from enginefarm.names import PrecisionName

MODEL = """<ir_version: 10, opset_import: ["" : 20]>
agraph (float[batch, 4] x) => (float[batch, 4] y) { y = Clip (x, low, high) }"""


def model(high: float) -> onnx.ModelProto:
    made = parser.parse_model(MODEL)
    bounds = {"low": -high, "high": high}
    made.graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.float32), name) for name, value in bounds.items()
    )
    return made


def order(folder: Path, precision: PrecisionName, **changes: object) -> Order:
    """Verification data between -1 and 1, and calibration data of which one sample is larger."""
    x = np.random.default_rng(0).uniform(-1, 1, (8, 4)).astype(np.float32)
    np.savez(folder / "verification.npz", x=x)
    np.savez(folder / "calibration.npz", x=np.where(np.arange(8)[:, None] == 5, 3 * x, x))
    onnx.save(model(10.0), folder / "model.onnx")
    np.savez(folder / "reference.npz", **{"0000/input/x": x, "0000/output/y": x})
    recipe = Recipe.model_validate(
        document(
            inputs=[{"name": "x", "shape": ["batch", 4]}],
            precisions=[precision],
            verification={"data": {"path": "verification.npz"}},
            calibration={"data": {"path": "calibration.npz"}, "batches": 4, "batch_size": 2},
            **changes,
        )
    )
    return Order(
        recipe=recipe,
        root=folder,
        folder=folder,
        onnx=folder / "model.onnx",
        precision=precision,
        reference=folder / "reference.npz",
        memory=folder / "memory.jsonl",
    )


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_graph_that_clips_calibration_data_alone_has_no_margin(
    tmp_path: Path, precision: PrecisionName
) -> None:
    with evidence.of_order(order(tmp_path, precision)) as seen:
        assert seen is not None
        assert seen.judge is not None
        assert seen.careful is not None
        assert seen.always
        onnx.save(model(1.0), tmp_path / "clips.onnx")
        assert seen.judge(tmp_path / "clips.onnx")
        assert not seen.careful(tmp_path / "clips.onnx")
        assert seen.careful(tmp_path / "model.onnx")


def test_limits_of_ones_own_are_met_without_a_margin(tmp_path: Path) -> None:
    own = {"int8": {"max_relative_l2": 0.2}}
    with evidence.of_order(order(tmp_path, "int8", accuracy=own)) as seen:
        assert seen is not None
        assert not seen.always


def test_sixteen_bits_have_one_judge(tmp_path: Path) -> None:
    with evidence.of_order(order(tmp_path, "fp16")) as seen:
        assert seen is not None
        assert seen.careful is None


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_ranges_that_are_known_are_not_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: PrecisionName
) -> None:
    def observe(*_: object) -> dict[str, float]:
        raise AssertionError("they are known")

    monkeypatch.setattr(ranges, "observe", observe)
    known = order(tmp_path, precision).model_copy(update={"largest": {"y": 1e6}, "memory": None})
    with evidence.of_order(known) as seen:
        kept = kept_wide.find(model(10.0), onnx.TensorProto.FLOAT16, (), seen)
    assert [node.reason for node in kept.values()] == ["y reaches 1e+06; FP16 ends at 65504"]
