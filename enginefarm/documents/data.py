"""The parts of a recipe that say which arrays are read, for calibration and for verification."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from enginefarm.documents.comparing import ComparisonRules
from enginefarm.schema import FilePath, Frozen, ImportPath


class Data(Frozen):
    """Where arrays come from; each batch is a dict from input name to array.

    `path`: an `.npz` (one array for each input, first axis = samples) or a folder of `.npz`/`.npy`
    batches. `callable`: returns an iterator of dicts; called with `arguments` and, where it takes
    them, `seed` and `batch_size`.
    """

    path: FilePath | None = Field(
        default=None,
        description="An `.npz` file (or `.npy` for one input) whose first axis counts samples, "
        "or a folder of such files, one for each batch.",
    )
    callable: ImportPath | None = Field(
        default=None, description="A function that returns an iterator of batches."
    )
    arguments: dict[str, JsonValue] = Field(
        default_factory=dict, description="Keyword arguments of the callable."
    )
    depends: tuple[FilePath, ...] = Field(
        default=(),
        description="More files and folders that the data depends on, relative to the recipe.",
    )
    random: bool = Field(
        default=False,
        description="Seeded random inputs. Every table says that figures come from these.",
    )
    labels: str | None = Field(
        default=None,
        description="Key of the true classes in each batch, when the data is labeled.",
    )
    not_finite: bool = Field(
        default=False,
        description="The data has NaN on purpose. Otherwise NaN is refused; infinities are not.",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Data:
        if [self.path is not None, self.callable is not None, self.random].count(True) != 1:
            raise ValueError("give exactly one of `path`, `callable` and `random: true`")
        return self


BatchSize = Annotated[
    int,
    Field(ge=1, le=4096, description="Samples in each batch that a callable is asked to yield."),
]
Seed = Annotated[
    int,
    Field(
        ge=0,
        description="Seed of random inputs, and of a callable that has a parameter `seed`.",
    ),
]


class Calibration(Frozen):
    """Representative data for INT8/FP8 scales, and how ranges are chosen from it.

    `auto` tries the three others and keeps the one whose graph is closest to the FP32 reference.
    FP8 takes the largest value whatever the method.
    """

    data: Data = Field(description="Representative inputs: not the ones it is verified on.")
    method: Literal["auto", "entropy", "minmax", "percentile"] = Field(
        default="auto", description="How a range is chosen from the observed values."
    )
    percentile: float = Field(
        default=99.99, gt=50, le=100, description="For `percentile`: this share of |x| is in range."
    )
    batches: int = Field(default=16, ge=1, le=100_000, description="How many batches are read.")
    batch_size: BatchSize = 8
    seed: Seed = 0


class Verification(ComparisonRules):
    """What every stage is compared on. Without `data`, the calibration data is used; without
    that too, seeded random inputs are, and every table says so."""

    data: Data | None = Field(
        default=None,
        description="Inputs other than the calibration's, with labels if there are any.",
    )
    batches: int = Field(default=4, ge=1, le=10_000, description="How many batches are read.")
    batch_size: BatchSize = 8
    seed: Seed = 1

    @property
    def comparing(self) -> ComparisonRules:
        return ComparisonRules.model_validate(
            self.model_dump(include=set(ComparisonRules.model_fields))
        )
