"""How outputs are compared, and whether their figures are within a budget.

Reads documents alone: a host that only pulls, and a gate, check a manifest's figures too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from enginefarm.documents.thresholds import PART_FACTOR, Budget
from enginefarm.schema import Frozen, Name

UNUSABLE = 1e30
"""Stands for infinity: JSON has none."""
MOST_ROUNDING = 0.01
"""The most that FP32 rounding may excuse, of a whole output: a model that loses more in FP32
needs its own budget."""
OutputName = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class ComparisonRules(Frozen):
    """What outputs mean, as far as their comparison depends on it."""

    class_scores: tuple[OutputName, ...] = Field(
        default=(), description="Outputs that are class scores: top-1 is compared on these."
    )
    class_axis: int | None = Field(
        default=None,
        ge=-8,
        le=7,
        description="Axis of the classes in these. None: axis 1 if the rank is above 2, else the "
        "last.",
    )
    mask: OutputName | None = Field(
        default=None,
        description="Input whose zeros are padding: outputs are not compared at these positions.",
    )
    near_zero: float = Field(
        default=1e-9,
        gt=0,
        description="An output whose root mean square is below this counts as zero: its errors "
        "are measured against this number.",
    )
    slices: dict[OutputName, dict[Name, tuple[int, int]]] = Field(
        default_factory=dict,
        description="Named parts of an output along axis 1 that are compared separately: "
        "`{boxes: [0, 4], scores: [4, 22]}`, the end excluded. Without them: every channel.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> ComparisonRules:
        for output, parts in self.slices.items():
            for name, (start, end) in parts.items():
                if not 0 <= start < end:
                    raise ValueError(
                        f"slices.{output}.{name}: [{start}, {end}] is empty; write the first "
                        "index and the one after the last"
                    )
        return self

    def axis_of_classes(self, rank: int) -> int:
        """The class axis of an output of that rank, from 0."""
        axis = (1 if rank > 2 else -1) if self.class_axis is None else self.class_axis
        return axis % rank if -rank <= axis < rank else rank - 1


class Part(Frozen):
    """Figures of a part of an output: the worst sample, channel, corner or named slice."""

    kind: Literal["sample", "channel", "slice", "corner"]
    where: str
    cosine: float
    relative_l2: float
    max_abs: float
    rounding: float = 0.0


class OutputComparison(Frozen):
    """One output against the FP32 reference, over all verification batches."""

    output: str
    cosine: float
    max_abs: float
    relative_l2: float
    rounding: float = Field(
        default=0.0,
        description="Relative L2 that FP32 rounding alone costs, where it was measured: between "
        "two FP32 runs of the graph, the other one with other sums, and with inputs and weights "
        "moved to a neighboring number.",
    )
    top1_agreement: float | None = None
    equal: float | None = Field(
        default=None, description="Share of the values of an int32, int64 or bool output."
    )
    top1_accuracy: float | None = Field(
        default=None, description="On true labels, where there are any."
    )
    reference_top1_accuracy: float | None = None
    fault: str = Field(
        default="", description="Why it cannot be compared: its shape, NaN or infinity."
    )
    parts: tuple[Part, ...] = Field(
        default=(), description="The worst of each kind, by cosine, by relative L2 and by rounding."
    )


def judge(outputs: Sequence[OutputComparison], budget: Budget) -> tuple[str, ...]:
    """One line for each figure over budget, and by how much; nothing when all are within."""
    if not outputs:
        return ("the reference holds no batch: nothing was compared",)
    return tuple(line for output in outputs for line in _lines(output, budget))


def with_rounding(
    outputs: Sequence[OutputComparison], measured: Sequence[OutputComparison]
) -> tuple[OutputComparison, ...]:
    """The figures of an engine on its GPU, with what FP32 rounding costs as it was `measured`
    on the CPU: of the same output, and the most of any part of the same kind."""
    known = {output.output: output for output in measured}

    def part(one: Part, like: OutputComparison) -> Part:
        most = max((other.rounding for other in like.parts if other.kind == one.kind), default=0.0)
        return one.model_copy(update={"rounding": most})

    return tuple(
        output.model_copy(
            update={
                "rounding": like.rounding,
                "parts": tuple(part(one, like) for one in output.parts),
            }
        )
        if (like := known.get(output.output)) is not None
        else output
        for output in outputs
    )


def absent(outputs: Sequence[OutputComparison], budget: Budget) -> tuple[str, ...]:
    """Figures that the budget needs and no output has: verification has to run again."""
    asked = {
        "top-1 agreement": (
            budget.min_top1_agreement,
            any(output.top1_agreement is not None for output in outputs),
        ),
        "top-1 accuracy on labels": (
            budget.max_top1_drop_points,
            any(output.top1_accuracy is not None for output in outputs),
        ),
    }
    return tuple(name for name, (limit, there) in asked.items() if limit is not None and not there)


def _lines(output: OutputComparison, budget: Budget) -> Iterator[str]:
    name = output.output
    if output.fault or output.relative_l2 >= UNUSABLE:
        yield f"{name}: {output.fault or 'it holds NaN or infinity, or has another shape'}"
        return
    rounding = min(budget.rounding * output.rounding, MOST_ROUNDING)
    cosine, relative = _looser(budget.min_cosine, budget.max_relative_l2, rounding)
    yield from _at_least(name, "cosine", output.cosine, cosine)
    yield from _at_most(name, "relative L2", output.relative_l2, relative)
    yield from _at_most(name, "max abs", output.max_abs, budget.max_abs)
    yield from _at_least(name, "top-1 agreement", output.top1_agreement, budget.min_top1_agreement)
    yield from _at_least(name, "share of equal values", output.equal, budget.min_equal)
    if output.top1_accuracy is not None and output.reference_top1_accuracy is not None:
        drop = (output.reference_top1_accuracy - output.top1_accuracy) * 100
        yield from _at_most(name, "top-1 drop in points", drop, budget.max_top1_drop_points)
    for part in output.parts:
        where = f"{name}, {part.where}"
        rounding = min(budget.rounding * part.rounding, PART_FACTOR * MOST_ROUNDING)
        cosine, relative = _looser(budget.part_cosine, budget.part_relative_l2, rounding)
        yield from _at_least(where, "cosine", part.cosine, cosine)
        yield from _at_most(where, "relative L2", part.relative_l2, relative)
        if part.kind == "corner":
            yield from _at_most(where, "max abs", part.max_abs, budget.max_abs)


def _looser(cosine: float, relative: float, rounding: float) -> tuple[float, float]:
    """Both limits, where an error as long as `rounding` passes too: it turns a vector by half
    its square, in 1 - cosine."""
    return min(cosine, 1 - rounding**2 / 2), max(relative, rounding)


def _at_least(where: str, what: str, value: float | None, limit: float | None) -> Iterator[str]:
    if limit is not None and value is not None and not value >= limit:
        yield f"{where}: {what} {value:.6g} is below {limit:.6g} by {limit - value:.3g}"


def _at_most(where: str, what: str, value: float | None, limit: float | None) -> Iterator[str]:
    if limit is not None and value is not None and not value <= limit:
        yield f"{where}: {what} {value:.6g} is above {limit:.6g} by {value - limit:.3g}"
