"""Figures against the reference, and what is over budget by how much."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from enginefarm.documents.comparing import ComparisonRules
from enginefarm.documents.thresholds import Budget
from enginefarm.errors import CalibrationError, PrecisionError
from enginefarm.graph.model import onnx_files
from enginefarm.graph.verification import verify
from enginefarm.graph.verification.reference import ReferenceBatch

LOOSE = Budget(min_cosine=-1, max_relative_l2=1e9)


def batch(wanted: np.ndarray, labels: np.ndarray | None = None) -> ReferenceBatch:
    return ReferenceBatch(inputs={}, outputs={"y": wanted}, labels=labels)


def compare(
    pairs: Iterable[tuple[ReferenceBatch, np.ndarray]], budget: Budget = LOOSE, scores: bool = False
) -> verify.Comparison:
    found = {id(reference): array for reference, array in pairs}
    return verify.compare(
        [reference for reference, _ in pairs],
        lambda reference: {"y": found[id(reference)]},
        budget,
        ComparisonRules(class_scores=("y",) if scores else ()),
    )


def test_equal_outputs_are_perfect() -> None:
    y = np.random.default_rng(0).normal(size=(4, 10)).astype(np.float32)
    result = compare([(batch(y), y.copy())], Budget(min_cosine=1, max_relative_l2=0, max_abs=0))
    assert result.samples == 4
    assert result.over_budget == ()
    assert (result.outputs[0].cosine, result.outputs[0].relative_l2) == (1.0, 0.0)


def test_figures_over_several_batches_are_those_over_all_samples() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(9, 5)).astype(np.float32)
    y = x + random.normal(size=x.shape).astype(np.float32) / 10
    parts = [(batch(x[:4]), y[:4]), (batch(x[4:]), y[4:])]
    found = compare(parts).outputs[0]
    a, b = x.ravel().astype(float), y.ravel().astype(float)
    assert found.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert found.relative_l2 == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a))
    assert found.max_abs == pytest.approx(np.abs(a - b).max())


def test_over_budget_says_which_figure_and_by_how_much() -> None:
    x = np.ones((2, 4), np.float32)
    y = x.copy()
    y[0, 0] = 1.5
    result = compare([(batch(x), y)], Budget(min_cosine=0.999, max_relative_l2=0.1, max_abs=0.4))
    assert [line.partition(" is ")[0].rsplit(" ", 1)[0] for line in result.over_budget] == [
        "y: cosine",
        "y: relative L2",
        "y: max abs",
        "y, sample 0: cosine",
    ]
    assert "y: max abs 0.5 is above 0.4 by 0.1" in result.over_budget


def test_top1_agreement_and_accuracy_on_true_labels() -> None:
    wanted = np.eye(4, dtype=np.float32)
    found = wanted.copy()
    found[3] = [1, 0, 0, 0]
    labels = np.array([0, 1, 3, 3])
    budget = LOOSE.model_copy(update={"min_top1_agreement": 0.9, "max_top1_drop_points": 1.0})
    result = compare([(batch(wanted, labels), found)], budget, scores=True)
    output = result.outputs[0]
    assert output.top1_agreement == 0.75
    assert (output.reference_top1_accuracy, output.top1_accuracy) == (0.75, 0.5)
    assert "y: top-1 agreement 0.75 is below 0.9 by 0.15" in result.over_budget
    assert "y: top-1 drop in points 25 is above 1 by 24" in result.over_budget


def test_labels_are_not_used_for_outputs_that_are_no_scores() -> None:
    y = np.eye(4, dtype=np.float32)
    assert compare([(batch(y, np.arange(4)), y)]).outputs[0].top1_accuracy is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_over_any_budget(bad: float) -> None:
    x = np.ones((2, 4), np.float32)
    y = x.copy()
    y[1, 1] = bad
    result = compare([(batch(x), y)])
    assert len(result.over_budget) == 1
    assert "y: 1 of 8 values are" in result.over_budget[0]
    assert "first at [1, 1]" in result.over_budget[0]
    result.outputs[0].canonical_json()  # and it can be written down


def test_another_shape_is_over_any_budget() -> None:
    result = compare([(batch(np.ones((2, 4), np.float32)), np.ones((2, 1), np.float32))])
    assert result.over_budget


def test_nothing_compared_is_not_a_pass() -> None:
    assert verify.compare([], lambda _: {}, LOOSE, ComparisonRules()).over_budget


def test_an_all_zero_reference() -> None:
    zero = np.zeros((2, 4), np.float32)
    assert compare([(batch(zero), zero)]).outputs[0].cosine == 1.0
    assert compare([(batch(zero), zero + 1)], Budget()).over_budget


def test_a_reference_that_is_no_reference(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = onnx_files.write(made, tmp_path)
    (tmp_path / "reference.npz").write_bytes(b"no")
    with pytest.raises(CalibrationError, match=r"reference\.npz is not a reference"):
        verify.verify_graph(path, tmp_path / "reference.npz", LOOSE, ComparisonRules())
    path.write_bytes(b"")
    with pytest.raises(PrecisionError, match="the file is empty"):
        verify.verify_graph(path, tmp_path / "reference.npz", LOOSE, ComparisonRules())
