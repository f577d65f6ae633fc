"""What a mean hides: samples, channels, named slices, corners, padding, scalars, infinities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from enginefarm.documents.comparing import ComparisonRules, absent
from enginefarm.documents.thresholds import DEFAULT_BUDGETS, Budget
from enginefarm.errors import CalibrationError
from enginefarm.graph.verification import verify
from enginefarm.graph.verification.reference import ReferenceBatch

RNG = np.random.default_rng(7)


def compare(
    wanted: np.ndarray,
    found: np.ndarray,
    budget: Budget,
    how: ComparisonRules | None = None,
    inputs: dict | None = None,
    **more: object,
) -> verify.Comparison:
    batch = ReferenceBatch(inputs or {}, {"y": wanted}, more.pop("labels", None), **more)
    return verify.compare([batch], lambda _: {"y": found}, budget, how or ComparisonRules())


def detector(last: bool) -> tuple[np.ndarray, np.ndarray]:
    """Boxes in pixels and scores below 1; in `found` the boxes are right, the scores are not."""
    boxes = RNG.uniform(0, 640, (2, 4, 500))
    scores = np.where(RNG.uniform(size=(2, 8, 500)) > 0.98, RNG.uniform(0.3, 1, (2, 8, 500)), 1e-4)
    wanted = np.concatenate([boxes, scores], 1).astype(np.float32)
    found = wanted.copy()
    found[:, 4:] *= 0.1
    return (wanted.transpose(0, 2, 1), found.transpose(0, 2, 1)) if last else (wanted, found)


@pytest.mark.parametrize("precision", list(DEFAULT_BUDGETS))
@pytest.mark.parametrize("last", [False, True], ids=["channels-first", "channels-last"])
def test_ruined_scores_behind_correct_boxes_are_over_every_default_budget(
    precision: str, last: bool
) -> None:
    wanted, found = detector(last)
    result = compare(wanted, found, DEFAULT_BUDGETS[precision])
    assert result.outputs[0].cosine > 0.99999
    assert any(f"y, axis {2 if last else 1}, index" in line for line in result.over_budget)


def test_slices_that_the_recipe_names_stand_for_the_channels() -> None:
    wanted, found = detector(last=False)
    how = ComparisonRules(slices={"y": {"boxes": (0, 4), "scores": (4, 12)}})
    result = compare(wanted, found, DEFAULT_BUDGETS["int8"], how)
    assert [line.partition(":")[0] for line in result.over_budget] == ["y, slice scores"]
    assert {part.where for part in result.outputs[0].parts if part.kind == "slice"} == {
        "slice scores"
    }


@pytest.mark.parametrize("precision", list(DEFAULT_BUDGETS))
@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_a_class_beside_the_right_one_is_a_wrong_class(precision: str, dtype: str) -> None:
    wanted = np.random.default_rng(3).integers(100, 1000, (8, 25)).astype(dtype)
    found = wanted.copy()
    found[:, ::4] += 1  # 28 % of them
    result = compare(wanted, found, DEFAULT_BUDGETS[precision])
    assert result.outputs[0].cosine > 0.99999
    assert result.outputs[0].equal == 0.72
    line = "y: share of equal values 0.72 is below 0.9 by 0.18"
    assert line in result.over_budget
    given = DEFAULT_BUDGETS[precision].model_copy(update={"min_equal": 0.7})
    assert line not in compare(wanted, found, given).over_budget


def test_padding_is_no_class() -> None:
    wanted = np.arange(1, 21).reshape(2, 10)
    mask = np.ones((2, 10), np.int64)
    mask[:, 5:] = 0
    found = np.where(mask, wanted, 0)
    how = ComparisonRules(mask="mask")
    result = compare(wanted, found, DEFAULT_BUDGETS["fp16"], how, {"mask": mask})
    assert result.outputs[0].equal == 1.0


def test_pictures_and_floats_are_not_compared_value_by_value() -> None:
    wanted = np.random.default_rng(3).integers(0, 256, (2, 3, 8, 8)).astype(np.uint8)
    found = (wanted ^ 1).astype(np.uint8)
    result = compare(wanted, found, DEFAULT_BUDGETS["int8"])
    assert not result.over_budget
    assert result.outputs[0].equal is None
    assert compare(wanted / 7, wanted / 7, Budget()).outputs[0].equal is None


def test_one_ruined_sample_among_many_is_over_budget() -> None:
    wanted = RNG.normal(size=(200, 32)).astype(np.float32)
    found = wanted.copy()
    found[57] *= -1
    result = compare(wanted, found, DEFAULT_BUDGETS["int8"])
    assert result.outputs[0].cosine > 0.98
    assert any(line.startswith("y, sample 57: cosine -0.9") for line in result.over_budget)


def test_one_ruined_sample_is_over_budget_where_each_batch_has_one_sample() -> None:
    """Models of a fixed batch of 1: silero-vad had a sample off by 1.24 times its size."""
    wanted = RNG.normal(size=(200, 1, 32)).astype(np.float32)
    batches = [ReferenceBatch({}, {"y": one}, None) for one in wanted]
    found = iter([-one if index == 57 else one for index, one in enumerate(wanted)])
    budget = DEFAULT_BUDGETS["int8"]
    result = verify.compare(batches, lambda _: {"y": next(found)}, budget, ComparisonRules())
    assert result.outputs[0].cosine > 0.98
    assert any(line.startswith("y, sample 57: cosine -0.9") for line in result.over_budget)


def test_samples_are_counted_over_the_batches() -> None:
    wanted = [RNG.normal(size=(4, 8)).astype(np.float32) for _ in range(3)]
    found = [array.copy() for array in wanted]
    found[2][1] = 0
    batches = [ReferenceBatch({}, {"y": array}, None) for array in wanted]
    pairs = {id(batch): array for batch, array in zip(batches, found, strict=True)}
    result = verify.compare(
        batches, lambda batch: {"y": pairs[id(batch)]}, DEFAULT_BUDGETS["fp16"], ComparisonRules()
    )
    assert result.samples == 12
    assert any("y, sample 9:" in line for line in result.over_budget)


def test_an_empty_picture_among_others_is_not_judged_by_its_own_size() -> None:
    wanted = RNG.normal(size=(4, 32)).astype(np.float32)
    wanted[2] = 0
    found = wanted + RNG.normal(size=wanted.shape).astype(np.float32) * 1e-3
    assert compare(wanted, found, DEFAULT_BUDGETS["fp16"]).over_budget == ()


def test_a_corner_has_its_own_line() -> None:
    wanted = np.ones((3, 4), np.float32)
    batches = [
        ReferenceBatch({}, {"y": wanted}, None),
        ReferenceBatch({}, {"y": wanted}, None, "profile default at max (batch=3)"),
    ]
    result = verify.compare(
        batches,
        lambda batch: {"y": -wanted if batch.corner else wanted},
        DEFAULT_BUDGETS["int8"],
        ComparisonRules(),
    )
    assert result.samples == 3, "corners repeat the data: they are no samples"
    assert result.corners == ("profile default at max (batch=3)",)
    assert [line.partition(":")[0] for line in result.over_budget] == [
        "y, profile default at max (batch=3)"
    ] * 2


def test_a_scalar_is_compared_as_one_value() -> None:
    value = np.float32(-0.4).reshape(())
    assert compare(value, value.copy(), DEFAULT_BUDGETS["fp32"]).over_budget == ()
    assert compare(value, value * np.float32(1.001), DEFAULT_BUDGETS["fp16"]).over_budget == ()
    assert compare(value, value * np.float32(1.5), DEFAULT_BUDGETS["int8"]).over_budget
    nan = np.full((), np.nan, np.float32)
    assert "first at []" in compare(value, nan, DEFAULT_BUDGETS["fp32"]).over_budget[0]


def test_near_zero_the_error_is_measured_by_itself() -> None:
    wanted, found = np.zeros(4, np.float32), np.full(4, 1e-8, np.float32)
    assert compare(wanted, found, DEFAULT_BUDGETS["fp32"]).over_budget
    lever = ComparisonRules(near_zero=1e-3)
    assert compare(wanted, found, DEFAULT_BUDGETS["fp32"], lever).over_budget == ()


def test_small_outputs_that_became_zero_are_no_success() -> None:
    """What FP16 makes of activations around 1e-8 (case 171)."""
    wanted = (RNG.uniform(size=(4, 64)) * 1e-8).astype(np.float32)
    result = compare(wanted, np.zeros_like(wanted), DEFAULT_BUDGETS["fp16"])
    assert any("relative L2 1 is above" in line for line in result.over_budget)


def test_an_infinity_that_fp32_has_too_is_no_damage() -> None:
    wanted = np.array([[1, -np.inf, 2], [np.inf, 3, 4]], np.float32)
    assert compare(wanted, wanted.copy(), DEFAULT_BUDGETS["fp32"]).over_budget == ()
    found = wanted.copy()
    found[0, 1] = np.inf
    line = compare(wanted, found, DEFAULT_BUDGETS["int8"]).over_budget[0]
    assert "1 of 6 values are infinite where FP32 has -inf, first at [0, 1]" in line
    found[0, 1] = -65504
    assert compare(wanted, found, DEFAULT_BUDGETS["int8"]).over_budget


@pytest.mark.parametrize("layout", ["tokens", "features-first"])
def test_padding_is_left_out(layout: str) -> None:
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 0]], np.int64)
    wanted = RNG.normal(size=(2, 4, 5)).astype(np.float32)
    found = np.where(mask[..., None] == 1, wanted, np.nan).astype(np.float32)
    if layout == "features-first":
        wanted, found = wanted.transpose(0, 2, 1), found.transpose(0, 2, 1)
    inputs = {"ids": np.zeros((2, 4)), "attention_mask": mask}
    budget = DEFAULT_BUDGETS["fp32"]
    assert compare(wanted, found, budget, inputs=inputs).over_budget
    how = ComparisonRules(mask="attention_mask")
    assert compare(wanted, found, budget, how, inputs).over_budget == ()


def test_classes_are_axis_1_above_rank_2() -> None:
    """Segmentation: one class a pixel; along the last axis it would be the column."""
    wanted = RNG.normal(size=(2, 5, 6, 7)).astype(np.float32)
    found = wanted.copy()
    found[0, :, 0, 0] = found[0, ::-1, 0, 0]
    how = ComparisonRules(class_scores=("y",))
    labels = wanted.argmax(1)
    output = compare(wanted, found, DEFAULT_BUDGETS["int8"], how, labels=labels).outputs[0]
    assert output.top1_agreement == pytest.approx(1 - 1 / 84)
    assert (output.reference_top1_accuracy, output.top1_accuracy) == (1, pytest.approx(83 / 84))


def test_the_recipe_may_name_another_class_axis() -> None:
    wanted = RNG.normal(size=(2, 6, 5)).astype(np.float32)
    how = ComparisonRules(class_scores=("y",), class_axis=-1)
    labels = wanted.argmax(-1)
    output = compare(wanted, wanted, Budget(), how, labels=labels).outputs[0]
    assert output.top1_accuracy == 1


def test_labels_that_do_not_fit_are_an_error_of_the_data() -> None:
    wanted = RNG.normal(size=(2, 5, 6, 7)).astype(np.float32)
    how = ComparisonRules(class_scores=("y",))
    with pytest.raises(CalibrationError, match=r"labels of shape \(2, 5, 6\) do not fit"):
        compare(wanted, wanted, Budget(), how, labels=np.zeros((2, 5, 6), int))


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.array(["cat", "dog"]), "labels are of the type <U3"),
        (np.array([0.5, 1]), "labels are of the type float64"),
        (np.array([1, 5]), "5 is not one of the 5 classes of output 'y'"),
    ],
)
def test_labels_that_are_not_classes_are_an_error_of_the_data(labels: Any, says: str) -> None:
    wanted = RNG.normal(size=(2, 5)).astype(np.float32)
    with pytest.raises(CalibrationError, match=says):
        compare(wanted, wanted, Budget(), ComparisonRules(class_scores=("y",)), labels=labels)


@pytest.mark.parametrize("ignored", [-100, 255])
def test_places_without_a_class_do_not_count(ignored: int) -> None:
    """Among four pixels of which two count, one that changes is half of them."""
    wanted = RNG.normal(size=(1, 3, 4)).astype(np.float32)
    found = wanted.copy()
    found[0, :, 0] = found[0, ::-1, 0] * 9
    labels = wanted.argmax(1)
    assert found.argmax(1)[0, 0] != labels[0, 0]
    labels[0, 2:] = ignored
    how = ComparisonRules(class_scores=("y",))
    output = compare(wanted, found, Budget(), how, labels=labels).outputs[0]
    assert (output.reference_top1_accuracy, output.top1_accuracy) == (1, 0.5)


def test_a_budget_says_which_figures_it_lacks() -> None:
    wanted = RNG.normal(size=(2, 5)).astype(np.float32)
    outputs = compare(wanted, wanted, Budget()).outputs
    assert absent(outputs, Budget()) == ()
    assert absent(outputs, Budget(min_top1_agreement=0.9, max_top1_drop_points=1)) == (
        "top-1 agreement",
        "top-1 accuracy on labels",
    )
