"""The sizes at which a PyTorch model is traced for its export."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

from enginefarm.documents.recipe import DimRange, Recipe
from enginefarm.graph.samples import feeds


def sizes(recipe: Recipe) -> Iterator[dict[str, int]]:
    """Sizes to trace at, the best first: each set once.

    As the user wrote them, where dims differ from each other and from 1: torch takes equal
    sizes for one dim, and a size of 1 for a constant. Then written sizes mixed so that they
    differ, then any that differ, and last those that are equal, for a model that needs it.
    """
    points: tuple[feeds.Point, ...] = ("opt", "max", "min")
    corners = [feeds.at(profile, point) for point in points for profile in recipe.profiles]
    fine = [dims for dims in corners if _differ(recipe, dims)]
    rest = [dims for dims in corners if dims not in fine]
    apart = (_apart(recipe, _written), _apart(recipe, _within))
    seen: list[dict[str, int]] = []
    for dims in chain(fine, apart, rest):
        if dims not in seen:
            seen.append(dims)
            yield dims


def _differ(recipe: Recipe, dims: dict[str, int]) -> bool:
    # A dim that every profile holds at one size may be taken for a constant.
    free = [size for dim, size in dims.items() if len(set(recipe.dim_ranges[dim])) > 1]
    return len(set(free)) == len(free) and 1 not in free


def _apart(recipe: Recipe, offered: Callable[[DimRange], list[int]]) -> dict[str, int]:
    """For each dim of the first profile, an offered size above 1 that no other dim has."""
    found: dict[str, int] = {}
    for dim in recipe.dynamic_dims:
        bounds = recipe.profiles[0].dims[dim]
        free = [size for size in offered(bounds) if size > 1 and size not in found.values()]
        found[dim] = free[0] if free else bounds.opt
    return found


def _written(bounds: DimRange) -> list[int]:
    return [bounds.opt, bounds.max, bounds.min]


def _within(bounds: DimRange) -> list[int]:
    return [bounds.opt, *range(min(bounds.max, bounds.min + 64), bounds.min - 1, -1)]
