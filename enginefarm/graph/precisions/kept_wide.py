"""Which nodes stay in FP32, and why: by rule, by the ranges of the reference, and by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from onnx import ModelProto, TensorProto
from pydantic import JsonValue

from enginefarm.errors import RecipeError, did_you_mean
from enginefarm.graph.model import walk
from enginefarm.graph.model.onnx_shapes import infer_types
from enginefarm.graph.precisions import ranges, rules
from enginefarm.graph.precisions.evidence import Evidence
from enginefarm.graph.precisions.use import BY_NAME


@dataclass(frozen=True)
class WideNode:
    """gain_db: how much worse the output that is hurt most would be without; None where that
    was not measured, or where the output would not be finite."""

    reason: str
    gain_db: float | None = None


def find(
    model: ModelProto, low: int, names: Sequence[str], evidence: Evidence | None
) -> dict[str, WideNode]:
    """Nodes of the FP32 graph to keep in FP32, by name of the node.

    low: the TensorProto type of the rest. names: the recipe's `keep_wide`. Without evidence no
    range is looked at.
    Raises: RecipeError for a name that the graph does not have.
    """
    infer_types(model)
    found = {name: WideNode(BY_NAME) for name in named(model, names)}
    for name, reason in rules.find(model).items():
        found.setdefault(name, WideNode(reason))
    if evidence is not None and low == TensorProto.FLOAT16:  # BF16 has the range of FP32
        largest = evidence.largest
        if largest is None:
            largest = ranges.observe(model, (batch.inputs for batch in evidence.batches()))
        for name, reason in ranges.find(model, largest).items():
            found.setdefault(name, WideNode(reason))
    return found


def named(model: ModelProto, names: Sequence[str]) -> list[str]:
    """Names of the nodes that the recipe's `keep_wide` means: each of its entries is the name of
    a node, a pattern of names (`/decoder/*`), or a type of operator.

    Raises: RecipeError for an entry that means no node.
    """
    nodes = [(node.name, node.op_type) for node in walk.nodes(model.graph)]
    found: list[str] = []
    for index, wanted in enumerate(names):
        meant = [n for n, op in nodes if wanted in (n, op) or fnmatchcase(n, wanted)]
        if not meant:
            known = dict.fromkeys([name for name, _ in nodes] + [op for _, op in nodes])
            raise RecipeError(
                f"keep_wide[{index}]: the graph has no node and no operator {wanted!r}",
                fix=did_you_mean(wanted, known)
                or f"its operators are {', '.join(sorted({op for _, op in nodes}))}",
            )
        found += meant
    return found


def listed(model: ModelProto, kept: dict[str, WideNode]) -> list[JsonValue]:
    """The nodes as the manifest lists them, in the graph's order."""
    return [
        {
            "node": node.name,
            "op_type": node.op_type,
            "reason": kept[node.name].reason,
            "gain_db": kept[node.name].gain_db,
        }
        for node in walk.nodes(model.graph)
        if node.name in kept
    ]
