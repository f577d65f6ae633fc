"""What decides a precision's graph, as its action key has it. Loads no library."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import JsonValue

from enginefarm.documents.recipe import Recipe
from enginefarm.documents.spec import ToolUse
from enginefarm.documents.thresholds import Budget
from enginefarm.graph.model.operators import WIDE, WIDE_IN_BF16
from enginefarm.names import PrecisionName

CAST_VERSION = "5"
"""The version of the mixed-precision cast: raise it when the graph that it makes changes."""
RULES_VERSION = "5"
"""The version of the rules and ranges that keep nodes in FP32: raise it when they keep others."""

SEARCH_VERSION = "2"
"""The version of the search: raise it when it would find another set."""
BINS = 2048
LEVELS = 128
"""The levels of a symmetric 8-bit number on one side of zero."""
STRIDE = 4
SAME_FROM = 19
"""The highest opset that a precision with ranges needs: the first whose Q/DQ take FP16 scales
and FP8 numbers."""

BY_NAME = "the recipe keeps it wide"
BY_SEARCH = "the search found that the budget needs it"


class Storage(NamedTuple):
    """An 8-bit number: its ONNX element type, and the largest magnitude that it holds."""

    element: str
    largest: float


INT8 = Storage("INT8", 127.0)
FP8 = Storage("FLOAT8E4M3FN", 448.0)


def cast_tool(low: str) -> ToolUse:
    """The mixed-precision cast to `FLOAT16` or `BFLOAT16`."""
    wide = [*WIDE, *(WIDE_IN_BF16 if low == "BFLOAT16" else ())]
    return ToolUse(
        name="enginefarm.mixed", version=CAST_VERSION, arguments={"low": low, "wide": [*wide]}
    )


def wide_tools(
    recipe: Recipe, precision: PrecisionName, reference_digest: str | None
) -> tuple[ToolUse, ...]:
    """What keeps nodes wide: names, ranges seen on the reference's data, and the search, which
    ends where the budget is met.

    reference_digest: `data.data_digest` of the verification data.
    """
    data: dict[str, JsonValue] = {
        "data": reference_digest,
        "settings": recipe.verification.model_dump(mode="json", exclude={"data"}),
    }
    rules = ToolUse(
        name="enginefarm.kept_wide",
        version=RULES_VERSION,
        arguments={"names": [*recipe.keep_wide], **data},
    )
    if not recipe.search_tries:
        return (rules,)
    from enginefarm.graph.verification.verify import METHOD

    search = ToolUse(
        name="enginefarm.search",
        version=SEARCH_VERSION,
        arguments={
            "tries": recipe.search_tries,
            "budget": _limits(recipe.budget(precision)),
            "judged_by": METHOD,
        },
    )
    return (rules, search)


def _limits(budget: Budget) -> dict[str, JsonValue]:
    """A margin of 1 is left out, as in the keys of earlier versions."""
    found = budget.model_dump(mode="json")
    if budget.margin == 1:
        del found["margin"]
    return found
