"""What a recipe lets a precision lose against FP32, and a night against those before it."""

from __future__ import annotations

from pydantic import Field, model_validator

from enginefarm.schema import Frozen


class Budget(Frozen):
    """How far a precision may stray from the FP32 PyTorch reference."""

    min_cosine: float = Field(default=0.99, ge=-1, le=1)
    max_relative_l2: float = Field(default=0.2, ge=0)
    max_abs: float | None = Field(default=None, ge=0)
    min_top1_agreement: float | None = Field(default=None, ge=0, le=1)
    max_top1_drop_points: float | None = Field(
        default=None,
        ge=0,
        le=100,
        description="Labelled data: points of top-1 accuracy it may lose.",
    )


DEFAULT_BUDGETS: dict[str, Budget] = {
    "fp32": Budget(min_cosine=0.99999, max_relative_l2=1e-4),
    "fp16": Budget(min_cosine=0.999, max_relative_l2=0.01),
    "bf16": Budget(min_cosine=0.99, max_relative_l2=0.05),
    "int8": Budget(min_cosine=0.98, max_relative_l2=0.25),
    "fp8": Budget(min_cosine=0.98, max_relative_l2=0.25),
}


class Regression(Frozen):
    """When a night's timing counts as slower. No part of the action key.

    Slower means both: above `latency_ratio` × the baseline's median, and above it by more
    than `spreads` robust spreads (1.4826 × median absolute deviation) of the baseline.
    """

    latency_ratio: float = Field(default=1.10, gt=1, le=10)
    spreads: float = Field(default=4.0, ge=0, le=20)
    nights: int = Field(default=14, ge=2, le=365, description="The baseline: so many before.")
    min_nights: int = Field(default=5, ge=2, le=365, description="Fewer: no verdict.")

    @model_validator(mode="after")
    def _enough(self) -> Regression:
        if self.min_nights > self.nights:
            raise ValueError(
                f"min_nights is {self.min_nights} and nights only {self.nights}; "
                "raise `nights`, or lower `min_nights`"
            )
        return self
