"""What a validated recipe says."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from tiny_models import document

from enginefarm.documents.recipe import Recipe
from enginefarm.documents.thresholds import DEFAULT_BUDGETS


def recipe(**changes: object) -> Recipe:
    return Recipe.model_validate(document(**changes))


def test_three_numbers_and_one_number_are_ranges() -> None:
    profile = recipe(profiles=[{"dims": {"batch": [1, 2, 3]}}]).profiles[0]
    assert (profile.dims["batch"].min, profile.dims["batch"].max) == (1, 3)
    fixed = recipe(profiles=[{"dims": {"batch": 5}}]).profiles[0].dims["batch"]
    assert fixed.min == fixed.opt == fixed.max == 5


def test_a_recipe_does_not_change() -> None:
    with pytest.raises(ValidationError):
        recipe().name = "other"  # type: ignore[misc]


def test_moving_a_recipe_leaves_its_value_alone() -> None:
    made = recipe()
    moved = made.at(Path("/somewhere"))
    assert moved.root == Path("/somewhere")
    assert made.root == Path()
    assert moved.sha256() == made.sha256()


def test_a_budget_of_ones_own_replaces_the_default() -> None:
    made = recipe(accuracy={"int8": {"min_cosine": 0.5}})
    assert made.budget("int8").min_cosine == 0.5
    assert made.budget("fp16") == DEFAULT_BUDGETS["fp16"]


def test_default_budgets_of_8_bits_have_a_margin_and_limits_of_ones_own_do_not() -> None:
    made = recipe(accuracy={"int8": {"min_top1_agreement": 0.9}, "fp8": {"min_cosine": 0.97}})
    by_default = made.budget("int8")
    assert by_default.margin < 1
    assert by_default.with_margin.max_relative_l2 < by_default.max_relative_l2
    assert by_default.with_margin.min_top1_agreement == 0.9
    assert made.budget("fp8").with_margin == made.budget("fp8")
    own = recipe(accuracy={"fp8": {"min_cosine": 0.97, "margin": 0.5}}).budget("fp8")
    assert own.with_margin.min_cosine > 0.97
    assert made.budget("fp16").with_margin is made.budget("fp16")


def test_dims_are_listed_once_in_order_of_first_use() -> None:
    made = recipe(
        inputs=[
            {"name": "a", "shape": ["batch", "time"]},
            {"name": "b", "shape": ["time", "batch", 4]},
        ],
        profiles=[{"dims": {"batch": 1, "time": 2}}],
    )
    assert made.dynamic_dims == ("batch", "time")
