"""Precisions: ONNX -> ONNX, a file each behind one Protocol.

TensorRT 11 has no precision flags: networks are strongly typed, and a precision is in the
graph. Importing this package imports no library.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import JsonValue

from enginefarm.documents.recipe import Recipe
from enginefarm.documents.spec import PrecisionUse
from enginefarm.errors import PrecisionError
from enginefarm.names import PRECISIONS, loaded

if TYPE_CHECKING:
    from enginefarm.graph.precisions.evidence import Evidence
    from enginefarm.graph.samples.data import Batch


@dataclass(frozen=True)
class ConversionReport:
    """The rewritten graph, and figures worth keeping in the manifest."""

    path: Path
    details: dict[str, JsonValue] = field(default_factory=dict[str, Any])


class Precision(Protocol):
    """One precision. Its row in `names.PRECISIONS` says whether `convert` reads the batches.

    ranged: whether values that the range of FP16 does not hold decide which nodes stay in FP32.
    """

    name: str
    ranged: bool

    def use(
        self, recipe: Recipe, calibration_digest: str | None, reference_digest: str | None = None
    ) -> PrecisionUse:
        """Everything that decides the graph, without doing the work: part of the action key.

        calibration_digest, reference_digest: `data.data_digest` of the calibration and of the
        verification data; None where there is none.
        """
        ...

    def convert(
        self,
        src: Path,
        dest_dir: Path,
        recipe: Recipe,
        batches: Iterable[Batch],
        evidence: Evidence | None = None,
    ) -> ConversionReport:
        """Rewrites the slimmed FP32 graph at `src` to `dest_dir/model.onnx`.

        Inputs and outputs keep their dtypes. Without evidence, what depends on the reference is
        left out: ranges that FP16 does not hold, and the search for nodes to keep wide.
        Raises: PrecisionError, CalibrationError, RecipeError for `keep_wide`.
        """
        ...


def precision(name: str) -> Precision:
    """The precision of that name.

    Raises: PrecisionError for a name that is not in the table.
    """
    if name not in PRECISIONS:
        raise PrecisionError(
            f"no precision is called {name!r}", fix=f"use one of: {', '.join(PRECISIONS)}"
        )
    made: Precision = loaded(PRECISIONS[name].code)()
    return made
