"""Sizes inside a profile at which a model is tried."""

from __future__ import annotations

from pathlib import Path

from enginefarm.documents.recipe import Recipe
from enginefarm.graph.samples import feeds


def recipe(dims: dict[str, list[int]]) -> Recipe:
    inputs = [{"name": f"x{index}", "shape": [dim]} for index, dim in enumerate(dims)]
    return Recipe.model_validate(
        {
            "name": "sizes",
            "source": {"kind": "onnx", "path": "model.onnx"},
            "inputs": inputs,
            "profiles": [{"dims": dims}],
            "precisions": ["fp32"],
            "gpus": ["l4"],
            "verification": {"data": {"random": True, "arguments": dict.fromkeys(dims, 2)}},
        }
    ).at(Path())


def sizes(dims: dict[str, list[int]]) -> list[dict[str, int]]:
    (options,) = feeds.inside(recipe(dims))
    return [size for _, size in options]


def test_a_dim_that_is_a_sum_at_every_corner_is_a_sum_in_between() -> None:
    found = sizes({"seq": [1, 1, 16], "past": [1, 31, 64], "total": [2, 32, 80]})
    assert found
    for each in found:
        assert each["total"] == each["past"] + each["seq"], "a cache's mask covers both"
        assert 1 < each["seq"] < 16


def test_a_sum_at_one_corner_only_binds_nothing() -> None:
    (first, *_) = sizes({"a": [1, 4, 8], "b": [2, 4, 8], "c": [3, 9, 32]})
    assert (first["a"], first["b"]) == (3, 3)
    assert first["c"] == 7, "half-way from 3 to 9, and odd"
