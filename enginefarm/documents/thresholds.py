"""What a recipe lets a precision lose against FP32, and a night against those before it."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from enginefarm.names import PRECISIONS
from enginefarm.schema import Frozen

PART_FACTOR = 3.0
"""How much more the worst part of an output may lose than the whole of it."""


SCALED = ("min_cosine", "min_part_cosine", "max_relative_l2", "max_part_relative_l2", "max_abs")
"""The limits of errors that `Budget.part` makes smaller."""


class Budget(Frozen):
    """How far a precision may deviate from the FP32 PyTorch reference."""

    min_cosine: float = Field(
        default=0.99, ge=-1, le=1, description="Cosine of each whole output, at least."
    )
    max_relative_l2: float = Field(
        default=0.2, ge=0, description="Length of the error over length of the reference, at most."
    )
    max_abs: float | None = Field(
        default=None, ge=0, description="Largest error of a single value."
    )
    min_top1_agreement: float | None = Field(
        default=None, ge=0, le=1, description="Share of samples with the same top class as FP32."
    )
    min_equal: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="Share of the values of an int32, int64 or bool output that FP32 has too. They "
        "are classes, places or flags, so a value next to the right one is as wrong as any other.",
    )
    max_top1_drop_points: float | None = Field(
        default=None,
        ge=0,
        le=100,
        description="Labeled data: points of top-1 accuracy it may lose.",
    )
    min_part_cosine: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="For the worst sample, channel, corner or named slice. None: 9 times as far "
        "from 1 as `min_cosine`.",
    )
    max_part_relative_l2: float | None = Field(
        default=None,
        ge=0,
        description="The same parts. None: 3 times `max_relative_l2`.",
    )

    rounding: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="An error of at most this many times the model's own FP32 rounding error "
        "is allowed, even above `max_relative_l2`.",
    )
    margin: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="The search for nodes to keep wide aims at this share of the limits and "
        "leaves the rest for unseen data. The full limits decide whether an engine is "
        "published.",
    )

    @property
    def part_cosine(self) -> float:
        """An error PART_FACTOR times as long turns a vector by its square, in 1 - cosine."""
        if self.min_part_cosine is not None:
            return self.min_part_cosine
        return max(-1.0, 1 - PART_FACTOR**2 * (1 - self.min_cosine))

    @property
    def part_relative_l2(self) -> float:
        if self.max_part_relative_l2 is not None:
            return self.max_part_relative_l2
        return PART_FACTOR * self.max_relative_l2

    @property
    def with_margin(self) -> Budget:
        """The limits within which a graph is made."""
        return self if self.margin == 1 else self.part(self.margin)

    def part(self, share: float) -> Budget:
        """The same for errors of so large a share of its own: of a value, and of a vector, whose
        cosine falls by the square. Top-1 is left as it is."""
        given = {name: limit for name in SCALED if (limit := getattr(self, name)) is not None}
        limits = {
            name: limit * share if name.startswith("max_") else 1 - (1 - limit) * share**2
            for name, limit in given.items()
        }
        return self.model_copy(update=limits)


LIMITS = frozenset(("min_cosine", "max_relative_l2", "min_part_cosine", "max_part_relative_l2"))
"""A recipe that writes one of these means it: FP32 rounding then allows no more, and a graph that
meets them is taken as it is, unless the recipe writes `rounding` and `margin` too."""

DEFAULT_BUDGETS: dict[str, Budget] = {
    # Not checked: that would build a validator in every command that reads a manifest.
    name: Budget.model_construct(
        min_cosine=row.min_cosine,
        max_relative_l2=row.max_relative_l2,
        rounding=row.rounding,
        margin=row.margin,
    )
    for name, row in PRECISIONS.items()
}


def completed(precision: str, given: Any) -> Any:
    """A budget as a recipe wrote it, with the precision's defaults for what it left out."""
    fields = given.model_dump(exclude_unset=True) if isinstance(given, Budget) else given
    if not isinstance(fields, dict) or precision not in DEFAULT_BUDGETS:
        return given
    defaults = DEFAULT_BUDGETS[precision].model_dump(exclude_unset=True)
    if any(name in fields for name in LIMITS):
        del defaults["rounding"], defaults["margin"]
    return {**defaults, **fields}


class Regression(Frozen):
    """When a night's timing counts as slower. Not part of the action key.

    Slower means both: above `latency_ratio` × the baseline's median, and above it by more
    than `spreads` robust spreads (1.4826 × median absolute deviation) of the baseline.
    """

    latency_ratio: float = Field(
        default=1.10,
        gt=1,
        le=10,
        description="A slower timing is above this many times the baseline's median.",
    )
    spreads: float = Field(
        default=4.0,
        ge=0,
        le=20,
        description="A slower timing is also above the median by this many robust spreads.",
    )
    nights: int = Field(
        default=14, ge=2, le=365, description="The baseline: this many nights before."
    )
    min_nights: int = Field(
        default=5, ge=2, le=365, description="With fewer nights, no timing counts as slower."
    )
    min_speedup: float = Field(
        default=1.02,
        ge=1,
        le=10,
        description="A channel takes an engine with fewer bits only if it is at least this "
        "many times as fast as the fastest one with more bits on that GPU.",
    )

    @model_validator(mode="after")
    def _enough(self) -> Regression:
        if self.min_nights > self.nights:
            raise ValueError(
                f"min_nights is {self.min_nights} and nights only {self.nights}; "
                "raise `nights`, or lower `min_nights`"
            )
        return self
