"""A night in one sentence: what failed does not count as built."""

from __future__ import annotations

from pathlib import Path

import pytest

from enginefarm.farm.night import RecipeState, RunEnd, summary

A, B, C = (
    RecipeState(file=Path(name), recipe=name, wanted=4, cached=cached)
    for name, cached in (("a", 4), ("b", 1), ("c", 0))
)
UNREAD = RecipeState(file=Path("u"), error="RecipeError: no")
BUILT, FAILED = RunEnd("Completed", "", True), RunEnd("Failed", "ParseError: no", False)


@pytest.mark.parametrize(
    ("ended", "told"),
    [
        ({}, "5 engines are already built"),
        ({B.file: BUILT, C.file: BUILT}, "2 recipes were built tonight"),
        ({B.file: BUILT, C.file: FAILED}, "1 recipes were built tonight; 1 recipes failed"),
    ],
)
def test_each_recipe_is_counted_as_what_became_of_it(ended: dict[Path, RunEnd], told: str) -> None:
    assert told in summary((A, B, C), ended)


def test_a_recipe_that_failed_is_never_counted_as_built() -> None:
    said = summary((C, UNREAD), {C.file: FAILED})
    assert said == "2 recipes ask for 4 engines: 1 recipes failed; 1 recipes could not be read."
