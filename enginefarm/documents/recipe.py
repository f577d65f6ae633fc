"""Recipe: what a person writes. One YAML file, validated once, frozen from there on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import (
    BeforeValidator,
    Field,
    JsonValue,
    PrivateAttr,
    StringConstraints,
    field_validator,
    model_validator,
)

from enginefarm.documents.builder import BuilderOptions, DType
from enginefarm.documents.data import Calibration, Data, Verification
from enginefarm.documents.sources import Source
from enginefarm.documents.thresholds import DEFAULT_BUDGETS, Budget, Regression, completed
from enginefarm.names import PRECISIONS, PrecisionName, ToolchainWish
from enginefarm.schema import NAME, FilePath, Frozen, Name

CALIBRATED = tuple(name for name, row in PRECISIONS.items() if row.calibrated)
"""Precisions that need calibration data."""

MAX_DIM = 1 << 20
"""TensorRT accepts dims of 2**40 and then fails in the allocator; ours is a saner limit."""


def _dim(value: Any) -> Any:
    named = isinstance(value, str) and re.fullmatch(NAME, value) and not value[0].isdigit()
    counted = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_DIM
    if not (named or counted):
        raise ValueError(
            f"{value!r} is not a dim; write a whole number from 1 to {MAX_DIM}, or for a dynamic "
            "dim a name in lower-case letters, such as `batch`, whose range is in `profiles`"
        )
    return cast("Any", value)


class TensorSpec(Frozen):
    """One input. A dim is a number, or the name of a symbolic dim that profiles bound."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    dtype: DType = "float32"
    shape: tuple[
        Annotated[Annotated[int, Field(ge=1, le=MAX_DIM)] | Name, BeforeValidator(_dim)], ...
    ] = Field(description="For example `[batch, 3, 224, 224]`.")


def _three_numbers(value: Any) -> Any:
    if isinstance(value, list | tuple) and len(cast("list[Any]", value)) == 3:
        low, opt, high = cast("list[Any]", value)
        return {"min": low, "opt": opt, "max": high}
    if isinstance(value, int) and not isinstance(value, bool):
        return {"min": value, "opt": value, "max": value}
    if not isinstance(value, dict | DimRange):
        raise ValueError(
            f"write one number, or [min, opt, max], instead of {str(cast('Any', value))!r}"
        )
    return cast("Any", value)


class DimRange(Frozen):
    """min, opt and max of one symbolic dim: `[1, 8, 32]`, or the three by name."""

    min: int = Field(ge=1, le=MAX_DIM)
    opt: int = Field(ge=1, le=MAX_DIM)
    max: int = Field(ge=1, le=MAX_DIM)

    @model_validator(mode="after")
    def _ordered(self) -> DimRange:
        if not self.min <= self.opt <= self.max:
            raise ValueError(
                f"min ≤ opt ≤ max does not hold: {self.min}, {self.opt}, {self.max}; "
                "write them in that order"
            )
        return self


class Profile(Frozen):
    """One optimization profile: a range for each symbolic dim of the inputs."""

    name: Name = Field(default="default", description="Unique among the profiles.")
    dims: dict[Name, Annotated[DimRange, BeforeValidator(_three_numbers)]] = Field(
        default_factory=dict,
        description="min, opt and max of each symbolic dim: `{batch: [1, 8, 32]}`.",
    )


class Export(Frozen):
    """How PyTorch becomes ONNX."""

    opset: int = Field(default=20, ge=18, le=23, description="The opset that is exported.")


class Recipe(Frozen):
    """A model, its GPUs and precisions, and how accurate its engines must be."""

    name: Name = Field(description="The name that engines are pulled by.")
    source: Source = Field(description="Where the model is. Each kind has its own table below.")
    inputs: tuple[TensorSpec, ...] = Field(
        min_length=1,
        description="In the order of the arguments of the module's forward, or with their names.",
    )
    outputs: tuple[Annotated[str, StringConstraints(min_length=1, max_length=200)], ...] = Field(
        default=(),
        description="Names for the outputs, in order; if empty, the exporter chooses them.",
    )
    profiles: tuple[Profile, ...] = Field(
        default=(Profile(),), min_length=1, description="Optimization profiles."
    )
    precisions: tuple[PrecisionName, ...] = Field(
        default=("fp16",), min_length=1, description="One engine is built for each, on each GPU."
    )
    gpus: tuple[Name, ...] = Field(
        min_length=1, description="Labels of GPUs; `enginefarm gpus` lists them."
    )
    allow_skip: bool = Field(
        default=False,
        description="Skip engines whose GPU lacks the precision or whose toolchain lacks an "
        "operator; otherwise they fail. The others are built in both cases.",
    )
    calibration: Calibration | None = Field(
        default=None,
        description=f"Required by {' and '.join(CALIBRATED)}.",
    )
    verification: Verification = Field(
        default=Verification(), description="The data that engines are compared on."
    )
    accuracy: dict[PrecisionName, Budget] = Field(
        default_factory=dict[PrecisionName, Budget],
        description="Accuracy budgets by precision. Keys that are left out keep the precision's "
        "defaults, which `docs/gpus.md` lists.",
    )
    keep_wide: tuple[Annotated[str, StringConstraints(min_length=1, max_length=500)], ...] = Field(
        default=(),
        description="Nodes of the slimmed graph that stay in FP32 and are not quantized, in "
        "every precision: names, patterns of names (`/decoder/*`), or types of operators.",
    )
    search_tries: int = Field(
        default=40,
        ge=0,
        le=1000,
        description="If a precision misses its accuracy budget or its `margin`, the search for "
        "nodes that need FP32 runs or verifies at most this many graphs; 0: no search.",
    )
    regression: Regression = Field(
        default=Regression(), description="When a timing counts as slower."
    )
    toolchain: ToolchainWish = Field(
        default="auto",
        description="auto: the first that a worker with the GPU has, otherwise one that "
        "needs no GPU.",
    )
    builder: BuilderOptions = Field(
        default=BuilderOptions(), description="Options for the builder."
    )
    export: Export = Field(default=Export(), description="How PyTorch becomes ONNX.")
    plugins: tuple[FilePath, ...] = Field(
        default=(), description="Plugin libraries, relative to the recipe."
    )
    salt: str = Field(
        default="", max_length=100, description="Any text. Change it to build everything again."
    )

    _root: Path = PrivateAttr(default=Path())

    @property
    def root(self) -> Path:
        """The recipe's folder: relative paths and `file.py:name` start here."""
        return self._root

    def at(self, root: Path) -> Recipe:
        """The same recipe, its relative paths resolved from `root`."""
        recipe = self.model_copy()
        recipe._root = root
        return recipe

    @field_validator("accuracy", mode="before")
    @classmethod
    def _with_defaults(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        budgets = cast("Mapping[str, Any]", given)
        return {name: completed(name, budget) for name, budget in budgets.items()}

    def budget(self, precision: str) -> Budget:
        """What that precision may lose: the recipe's limits, and defaults for the others."""
        return self.accuracy.get(precision) or DEFAULT_BUDGETS[precision]

    @property
    def verification_data(self) -> Data:
        """The verification's data, else the calibration's, else seeded random inputs at `opt` of
        the first profile."""
        own = self.verification.data
        if own is None and self.calibration is not None:
            return self.calibration.data
        if own is not None and not own.random:
            return own
        sizes: dict[str, JsonValue] = {
            name: bounds.opt for name, bounds in self.profiles[0].dims.items()
        }
        return Data(random=True, arguments=sizes)

    @property
    def dynamic_dims(self) -> tuple[str, ...]:
        """Symbolic dims in order of first use."""
        seen = [dim for tensor in self.inputs for dim in tensor.shape if isinstance(dim, str)]
        return tuple(dict.fromkeys(seen))

    @property
    def dim_ranges(self) -> dict[str, tuple[int, int]]:
        """The least and the largest size of each symbolic dim, over all profiles."""
        found: dict[str, tuple[int, int]] = {}
        for profile in self.profiles:
            for dim, size in profile.dims.items():
                low, high = found.get(dim, (size.min, size.max))
                found[dim] = min(low, size.min), max(high, size.max)
        return found

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        _unique("inputs", [tensor.name for tensor in self.inputs])
        _unique("profiles", [profile.name for profile in self.profiles])
        _unique("gpus", self.gpus)
        _unique("precisions", self.precisions)
        _unique("outputs", self.outputs)
        both = sorted({tensor.name for tensor in self.inputs} & set(self.outputs))
        if both:
            raise ValueError(
                f"outputs: {', '.join(both)} is the name of an input too; an engine has one tensor "
                "of each name: give the output another one"
            )
        for field in ("class_scores", "slices"):
            unknown = sorted(set(getattr(self.verification, field)) - set(self.outputs))
            if not self.outputs or not unknown:
                continue
            raise ValueError(
                f"verification.{field}: no output is called {', '.join(unknown)}; "
                f"outputs are {', '.join(self.outputs)}"
            )
        mask = self.verification.mask
        if mask is not None and mask not in {tensor.name for tensor in self.inputs}:
            raise ValueError(
                f"verification.mask: no input is called {mask!r}; "
                f"inputs are {', '.join(tensor.name for tensor in self.inputs)}"
            )
        wanted = set(self.dynamic_dims)
        for index, profile in enumerate(self.profiles):
            for dim in sorted(wanted - profile.dims.keys()):
                tensor = next(t.name for t in self.inputs if dim in t.shape)
                raise ValueError(
                    f"profiles[{index}] ({profile.name}): dim {dim!r} of input {tensor!r} is "
                    f"dynamic and has no range; add `{dim}: [min, opt, max]` to its dims"
                )
            for dim in sorted(profile.dims.keys() - wanted):
                raise ValueError(
                    f"profiles[{index}] ({profile.name}): no input has a dim {dim!r}; "
                    f"dims in use: {', '.join(sorted(wanted)) or 'none'}"
                )
        scored = self.verification.class_scores
        labeled = scored and self.verification_data.labels is not None
        for precision, budget in self.accuracy.items():
            for field, measured, needs in (
                ("min_top1_agreement", scored, "outputs in `verification.class_scores`"),
                ("max_top1_drop_points", labeled, "`class_scores` and `data.labels` there, too"),
            ):
                if getattr(budget, field) is not None and not measured:
                    raise ValueError(
                        f"accuracy.{precision}.{field}: it limits a figure that is not measured; "
                        f"name {needs}"
                    )
        if set(CALIBRATED) & set(self.precisions) and self.calibration is None:
            raise ValueError(
                f"precisions: {' and '.join(CALIBRATED)} need `calibration` with representative "
                "data; add it, or drop the precision"
            )
        if self.calibration is not None and self.calibration.data.random:
            raise ValueError(
                "calibration.data: random inputs do not have the ranges of real ones; "
                "give representative data"
            )
        return self


def _unique(field: str, names: Iterable[str]) -> None:
    doubled = sorted(name for name, times in Counter(names).items() if times > 1)
    if doubled:
        shown = ", ".join(doubled[:5]) + (f" and {len(doubled) - 5} more" if doubled[5:] else "")
        raise ValueError(f"{field}: {shown} is listed twice; keep one")
