"""Resizes real inputs to any size that a profile allows, and runs a graph at their corners."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from enginefarm.documents.recipe import DimRange, Profile, Recipe
from enginefarm.errors import EnginefarmError
from enginefarm.graph.model import ort
from enginefarm.graph.samples import data

if TYPE_CHECKING:
    from enginefarm.graph.model.arrays import Arrays


Point = Literal["min", "opt", "max"]


def sample(recipe: Recipe) -> Arrays:
    """One batch of the recipe's own data, without labels.

    Real values matter: random token numbers or all-zero masks would take other paths.
    Raises: CalibrationError.
    """
    found = next(data.verification_batches(recipe))
    return data.split(found, recipe.verification_data)[0]


def sized(batch: Mapping[str, Any], recipe: Recipe, dims: Mapping[str, int]) -> Arrays:
    """The batch, repeated and cut to these sizes of its symbolic dims."""
    return shaped(
        batch,
        {
            tensor.name: tuple(dims[dim] if isinstance(dim, str) else dim for dim in tensor.shape)
            for tensor in recipe.inputs
        },
    )


def shaped(batch: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    """Real inputs, repeated and cut to these shapes: values can decide which path a model takes."""
    import numpy as np

    made: Arrays = {}
    for name, shape in shapes.items():
        array = batch[name]
        for axis, size in enumerate(shape):
            array = np.take(array, np.arange(size), axis=axis, mode="wrap")
        made[name] = np.asarray(array, order="C")
    return made


def other(batch: Mapping[str, Any], recipe: Recipe) -> Arrays:
    """Inputs that differ from the batch: its floats halved, at the smallest sizes of a profile."""
    smallest = sized(batch, recipe, at(recipe.profiles[0], "min"))
    return {
        name: (array * 0.5).astype(array.dtype) if array.dtype.kind == "f" else array
        for name, array in smallest.items()
    }


def corners(recipe: Recipe) -> Iterator[tuple[str, dict[str, int]]]:
    """The min, opt and max of each profile: a label for people, and the size of each dim."""
    seen: list[dict[str, int]] = []
    for profile in recipe.profiles:
        for point in ("min", "opt", "max"):
            dims = at(profile, point)
            if dims not in seen:
                seen.append(dims)
                label = ", ".join(f"{dim}={size}" for dim, size in dims.items())
                yield f"profile {profile.name} at {point} ({label or 'static'})", dims


def run_corners(
    path: Path, recipe: Recipe, sample: Arrays, error: type[EnginefarmError]
) -> dict[str, int]:
    """Each output -> its number of dims. Raises: `error` when the graph fails at a corner."""
    session = ort.session(path, error=error, what=f"the graph of {recipe.name}")
    ranks: dict[str, int] = {}
    refused: list[tuple[str, EnginefarmError]] = []
    for label, dims in corners(recipe):
        inputs = sized(sample, recipe, dims)
        try:
            found = ort.run(session, inputs, error=error, what=label)
        except error as failed:
            if failed.fix:
                raise
            refused.append((label, failed))
        else:
            ranks = {name: array.ndim for name, array in found.items()}
    if not refused:
        return ranks
    label, failed = refused[0]
    likely = (
        "a dim is not as dynamic as the recipe says"
        if ranks
        else "the graph runs at none of the recipe's sizes"
    )
    if recipe.verification_data.random:
        likely += ", or the model does not accept random numbers (provide your own data)"
    raise error(
        f"{label}: {likely}: ONNX Runtime cannot run the graph",
        why=failed.why,
        fix="write that part of the model with other operators, correct the recipe's inputs"
        + (", or fix the dim's size in the recipe" if ranks else ""),
    ) from failed


Size = tuple[str, dict[str, int]]


def inside(recipe: Recipe) -> Iterator[tuple[Size, ...]]:
    """Sizes between the corners of each profile: an odd one, and one for models that accept only
    multiples of the common divisor of their corners.

    Equal ranges get equal sizes, because some models need equal height and width. A dim that is the
    sum of two others at min, opt and max is their sum here too, as a mask's length is past +
    sequence.
    """
    for profile in recipe.profiles:
        corner = [at(profile, point) for point in ("min", "opt", "max")]
        steps = {dim: gcd(b.min, b.opt, b.max) for dim, b in profile.dims.items()}
        options = (
            {dim: _between(bounds, 1) for dim, bounds in profile.dims.items()},
            {dim: _between(bounds, steps[dim]) for dim, bounds in profile.dims.items()},
        )
        made: list[Size] = []
        for dims in (_with_sums(dims, profile) for dims in options):
            label = ", ".join(f"{dim}={size}" for dim, size in dims.items())
            size = (f"profile {profile.name} between its corners ({label})", dims)
            if dims not in corner and size not in made:
                made.append(size)
        if made:
            yield tuple(made)


def _between(bounds: DimRange, step: int) -> int:
    """A multiple of `step` about half-way from min to opt, or from opt to max; an odd number if
    `step` is 1; `opt` if there is nothing in between."""
    wide = bounds.opt > bounds.min + step
    low, high = (bounds.min, bounds.opt) if wide else (bounds.opt, bounds.max)
    middle = low + (high - low) // 2
    middle += 1 - middle % 2 if step == 1 else -(middle % step)
    steps = (0, 2, -2, 1, -1)
    return next(
        (
            size
            for size in (middle + count * step for count in steps)
            if bounds.min < size < bounds.max and size != bounds.opt
        ),
        bounds.opt,
    )


def _with_sums(dims: Mapping[str, int], profile: Profile) -> dict[str, int]:
    """The sizes, with each dim that is the sum of two others at every corner set to their sum."""
    corner = [at(profile, point) for point in ("min", "opt", "max")]
    made = dict(dims)
    for dim, bounds in profile.dims.items():
        for one, other in combinations((name for name in dims if name != dim), 2):
            always = all(sizes[dim] == sizes[one] + sizes[other] for sizes in corner)
            if always and bounds.min <= dims[one] + dims[other] <= bounds.max:
                made[dim] = dims[one] + dims[other]
    return made


def dims_of(batch: Mapping[str, Any], recipe: Recipe) -> dict[str, int]:
    """The sizes of the symbolic dims in a batch."""
    return {
        dim: batch[tensor.name].shape[axis]
        for tensor in recipe.inputs
        for axis, dim in enumerate(tensor.shape)
        if isinstance(dim, str)
    }


def at(profile: Profile, point: Point) -> dict[str, int]:
    return {dim: getattr(bounds, point) for dim, bounds in profile.dims.items()}


def misfit(batch: Mapping[str, Any], recipe: Recipe) -> str | None:
    """Why the batch does not fit any profile; None if it fits one."""
    sizes = dims_of(batch, recipe)
    reasons: list[str] = []
    for profile in recipe.profiles:
        outside = [
            f"{dim}={size} is not in {profile.dims[dim].min}..{profile.dims[dim].max}"
            for dim, size in sizes.items()
            if not profile.dims[dim].min <= size <= profile.dims[dim].max
        ]
        if not outside:
            return None
        reasons.append(f"profile {profile.name}: {', '.join(outside)}")
    return "; ".join(reasons)
