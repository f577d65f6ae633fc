"""Seeded random inputs: what engines are compared on where nobody gave data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from enginefarm.documents.data import Data
from enginefarm.documents.recipe import Recipe
from enginefarm.errors import RecipeError
from enginefarm.graph.samples import data
from enginefarm.recipes.file import parse

TEXT = """
name: m
source: { kind: onnx, path: m.onnx }
inputs:
  - { name: x, shape: [batch, 3] }
  - { name: ids, dtype: int64, shape: [batch, 7] }
  - { name: attention_mask, dtype: int64, shape: [batch, 7] }
  - { name: pixels, dtype: uint8, shape: [4, 4] }
profiles: [{ dims: { batch: [1, 5, 9] } }]
gpus: [t4]
"""


def batches(recipe: Recipe, seed: int) -> list[data.Batch]:
    return list(
        data.batches(
            recipe.verification_data,
            root=Path(),
            inputs=recipe.inputs,
            batches=2,
            batch_size=8,
            seed=seed,
        )
    )


def test_random_inputs_have_the_sizes_and_ranges_of_the_recipe() -> None:
    first, second = batches(parse(TEXT), seed=1)
    assert first["x"].shape == (5, 3)
    assert first["x"].dtype == np.float32
    assert set(np.unique(first["attention_mask"])) <= {0, 1}
    assert first["ids"].max() < 10
    assert first["pixels"].dtype == np.uint8
    assert not np.array_equal(first["x"], second["x"])


def test_a_seed_gives_the_same_inputs_again() -> None:
    once, again, other = (batches(parse(TEXT), seed)[0]["x"] for seed in (1, 1, 2))
    assert np.array_equal(once, again)
    assert not np.array_equal(once, other)


def test_the_sizes_are_part_of_what_decides_the_figures() -> None:
    smaller = parse(TEXT.replace("[1, 5, 9]", "[1, 4, 9]"))
    digests = {data.data_digest(one.verification_data, Path()) for one in (parse(TEXT), smaller)}
    assert len(digests) == 2


def test_random_inputs_calibrate_nothing() -> None:
    with pytest.raises(RecipeError, match="do not have the ranges"):
        parse(TEXT + "precisions: [int8]\ncalibration: { data: { random: true } }\n")


def test_data_of_the_user_is_taken_where_there_is_some() -> None:
    given = parse(TEXT + "verification: { data: { path: own.npz } }\n")
    assert given.verification_data == Data(path="own.npz")
