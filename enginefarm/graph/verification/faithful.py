"""Whether an exported graph computes what the model does, before any precision is verified."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginefarm.documents.comparing import judge
from enginefarm.documents.recipe import Recipe
from enginefarm.documents.thresholds import DEFAULT_BUDGETS
from enginefarm.errors import ExportError
from enginefarm.graph.model import emulate, onnx_files, ort
from enginefarm.graph.verification import rounding, steady
from enginefarm.graph.verification.reference import ReferenceBatch, read_reference
from enginefarm.graph.verification.verify import compare

if TYPE_CHECKING:
    from collections.abc import Callable

    from enginefarm.graph.model.arrays import Arrays

    Again = Callable[[ReferenceBatch], Arrays] | None

LIMIT = DEFAULT_BUDGETS["fp16"]
"""A graph whose FP32 outputs miss this, and what the recipe allows FP16 and FP32, by more than
their own rounding is another function."""


RANDOM = (
    "; among equal values, which random inputs have, an argmax may choose otherwise: give your own "
    "`verification.data`"
)


def require(graph: Path, reference: Path, recipe: Recipe, model: Any) -> None:
    """Runs the graph on the first batch of the reference and at each size of the profiles.

    One of half or bfloat16 numbers is left to the precisions, which compute it in FP32.
    Raises: ExportError that names the output, the sizes, and what is likely to be the cause;
    ModelError where the graph draws random numbers, as one of a forward that seeds its own does.
    """
    written = onnx_files.graph_only(graph)
    steady.refuse_random(written)
    if emulate.narrow(written):
        return
    session = ort.session(graph, error=ExportError, what="the exported graph")
    limits = (LIMIT, recipe.budget("fp32"), recipe.budget("fp16"))
    comparing = recipe.verification.comparing
    right: list[str] = []
    wrong: dict[str, str] = {}

    def over(batch: ReferenceBatch, found: Arrays, again: Again = None) -> str:
        compared = compare([batch], lambda _: found, LIMIT, comparing, again)
        missed = [judge(compared.outputs, limit) for limit in limits]
        return missed[0][0] if all(missed) else ""

    for index, batch in enumerate(read_reference(reference)):
        if index and not batch.corner:
            continue
        where = batch.corner or "the sizes of the verification data"
        found = ort.run(session, batch.inputs, error=ExportError, what=where)
        if over(batch, found) and (what := over(batch, found, _rounded(graph))):
            wrong[where] = what
        else:
            right.append(where)
    if not wrong:
        return
    where, what = next(iter(wrong.items()))
    raise ExportError(
        f"the graph that PyTorch's exporter wrote does not compute what the model computes: {what}",
        why=f"at {where}, in FP32; {_cause(model, right)}",
        fix="write that part of forward with other operators"
        + (", or fix the sizes in the recipe" if right else "")
        + (RANDOM if recipe.verification_data.random else "")
        + "; if the model amplifies rounding, allow more in `accuracy: { fp16: … }`",
    )


def _rounded(graph: Path) -> Again:
    return rounding.second_run(onnx_files.read(graph, error=ExportError))


def _cause(model: Any, right: list[str]) -> str:
    training = [
        f"{name or 'the model'} ({type(part).__name__})"
        for name, part in getattr(model, "named_modules", lambda: ())()
        if part.training
    ]
    if training:
        return f"{', '.join(training[:5])} is in training mode even after model.eval()"
    if right:
        return (
            f"the numbers are right at {right[0]}, so it wrote a number that holds for some sizes"
        )
    return "it wrote an operator of the model as another function"
