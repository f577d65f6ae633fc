"""FP16 and BF16, mixed: weights and arithmetic in 16 bits, what they would ruin in FP32."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from enginefarm import progress
from enginefarm.documents.recipe import Recipe
from enginefarm.documents.spec import PrecisionUse, ToolUse
from enginefarm.graph.model import operators, walk
from enginefarm.graph.precisions import ConversionReport, use
from enginefarm.names import PrecisionName

if TYPE_CHECKING:
    from onnx import ModelProto

    from enginefarm.graph.precisions import kept_wide
    from enginefarm.graph.precisions.evidence import Evidence
    from enginefarm.graph.samples.data import Batch


class SixteenBits:
    """Either of the two; they differ by the type, and by the opset that has it."""

    name: PrecisionName
    ranged: bool
    element: str
    opset = operators.OPSET

    def use(
        self, recipe: Recipe, calibration_digest: str | None, reference_digest: str | None = None
    ) -> PrecisionUse:
        return PrecisionUse(
            name=self.name,
            tools=(
                use.cast_tool(self.element),
                *self.converters(),
                *use.wide_tools(recipe, self.name, reference_digest),
            ),
        )

    def converters(self) -> tuple[ToolUse, ...]:
        """Other tools that decide the graph."""
        return ()

    def convert(
        self,
        src: Path,
        dest_dir: Path,
        recipe: Recipe,
        batches: Iterable[Batch],
        evidence: Evidence | None = None,
    ) -> ConversionReport:
        from onnx import TensorProto

        from enginefarm.graph.precisions import kept_wide, prepare
        from enginefarm.graph.precisions.finish import finish, wide_nodes
        from enginefarm.graph.precisions.mixed import cast

        progress.report(self.name, 0, 1)
        low = TensorProto.DataType.Value(self.element)
        model = prepare.fp32(src, self.name, self.opset)
        kept = kept_wide.find(model, low, recipe.keep_wide, evidence)
        if evidence is not None and evidence.judge is not None:
            kept |= _searched(model, low, kept, evidence)
        model = cast(model, low, kept)
        details = wide_nodes(model)
        details["kept_wide"] = kept_wide.listed(model, kept)
        report = finish(model, dest_dir, self.name, details)
        progress.report(self.name, 1, 1)
        return report


def _searched(
    model: ModelProto, low: int, kept: dict[str, kept_wide.WideNode], evidence: Evidence
) -> dict[str, kept_wide.WideNode]:
    from enginefarm.graph.model.edit import copied
    from enginefarm.graph.precisions import search
    from enginefarm.graph.precisions.mixed import cast

    if not walk.is_small(model):
        return {}

    def made(wide: frozenset[str]) -> ModelProto:
        return cast(copied(model), low, kept.keys() | wide)

    candidates = _low_nodes(made(frozenset()), low)
    cheap = [name for name, op in candidates.items() if op not in operators.MATRIX_PRODUCTS]
    searched = search.searched(made, [cheap, list(candidates)], evidence)
    # With every node wide nothing would be left in 16 bits: the budget is missed.
    return {} if searched.keys() >= candidates.keys() else searched


def _low_nodes(model: ModelProto, low: int) -> dict[str, str]:
    """Nodes that compute in 16 bits -> operator, in the graph's order."""
    from enginefarm.graph.model.emulate import EXACT

    found: dict[str, str] = {}
    for graph in walk.graphs(model.graph):
        lows = {v.name for v in graph.value_info if v.type.tensor_type.elem_type == low}
        for node in graph.node:
            if node.op_type != "Cast" and node.op_type not in EXACT and lows & set(node.output):
                found[node.name] = node.op_type
    return found


class FP16(SixteenBits):
    name: PrecisionName = "fp16"
    ranged = True
    element = "FLOAT16"


class BF16(SixteenBits):
    """As FP16, with BF16's range and 8 bits of mantissa."""

    name: PrecisionName = "bf16"
    ranged = False
    element = "BFLOAT16"
    opset = 22  # the first in which Conv and pooling take BF16

    def converters(self) -> tuple[ToolUse, ...]:
        arguments: dict[str, JsonValue] = {"opset": self.opset}
        return (
            ToolUse(name="onnx.version_converter", version=version("onnx"), arguments=arguments),
        )
