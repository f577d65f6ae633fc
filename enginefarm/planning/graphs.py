"""The stages of one precision: convert the graph, and verify it against the FP32 reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from pydantic import JsonValue

from enginefarm.documents.comparing import judge
from enginefarm.documents.manifest import GraphVerification
from enginefarm.documents.recipe import Recipe
from enginefarm.documents.spec import BlobRef, OnnxRef, PrecisionUse
from enginefarm.documents.stage import StageOutput, StageRecord
from enginefarm.errors import PrecisionError
from enginefarm.graph import precisions
from enginefarm.graph.precisions.use import BY_NAME
from enginefarm.graph.samples.data import data_digest
from enginefarm.graph.verification.verify import METHOD, verify_graph
from enginefarm.names import PRECISIONS
from enginefarm.planning import plan, plugins, stages
from enginefarm.schema import Frozen
from enginefarm.store.site import (
    Site,
    found_record,
    materialize,
    onnx_ref_of,
    recorded,
    stage_key,
)


class PreparedGraph(Frozen):
    """One precision of the model: its graph, and how far it strays from FP32."""

    use: PrecisionUse
    graph: OnnxRef
    reference: BlobRef
    verification: GraphVerification
    details: dict[str, JsonValue]
    plugins: tuple[BlobRef, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float
    cached: bool


def precision_use(recipe: Recipe, name: str) -> PrecisionUse:
    """What decides that precision's graph. Cheap: reads no array, loads no library."""
    found = precisions.precision(name)
    digest = None
    if PRECISIONS[name].calibrated and recipe.calibration is not None:
        digest = data_digest(recipe.calibration.data, recipe.root)
    return found.use(recipe, digest, data_digest(recipe.verification_data, recipe.root))


def convert(
    site: Site, recipe: Recipe, model: plan.Model, ref: stages.Reference, name: str, *, search: bool
) -> StageRecord:
    """The graph rewritten to one precision: cast, or calibrated into Q/DQ.

    search: also look for nodes to keep wide, until the budget is met. What was measured is noted
    in the cache, and an interrupted search continues from there.
    Raises: PrecisionError, CalibrationError, RecipeError for `keep_wide`.
    """

    def decides() -> str:
        return stage_key(
            onnx=model.onnx.digest,
            precision=precision_use(recipe, name).model_dump(mode="json"),
            reference=ref.npz.digest,
            search=search,
        )

    key = decides()

    def work(scratch: Path) -> StageOutput:
        graph = materialize(site, model.onnx, scratch / "in")
        order = stages.order_of(
            recipe,
            scratch,
            onnx=graph.absolute(),
            precision=name,
            reference=site.cache.ensure(site.store, ref.npz).absolute(),
            memory=_memory(site, key) if search else None,
            largest=_largest(site, model.onnx, ref.npz),
        )
        made = stages.in_child("convert", order, what=f"{name} conversion", error=PrecisionError)
        values = {"opset": model.onnx.opset, "details": made.values}
        return StageOutput(files=made.files, values=values)

    stage = f"search-{name}" if search else f"precision-{name}"
    record, _ = recorded(site, stage, key, work, key_again=decides)
    return record


def _largest(site: Site, onnx: OnnxRef, npz: BlobRef) -> dict[str, float] | None:
    """The ranges that the export has seen; None where each precision has to look itself."""
    record = found_record(site, "ranges", stages.ranges_key(onnx, npz))
    return None if record is None else cast("dict[str, float]", record.values["largest"])


def _memory(site: Site, key: str) -> Path:
    """The file in which the search keeps its measurements."""
    folder = site.cache.root / "searches"
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / f"{key}.jsonl").absolute()


def prepare(
    site: Site, recipe: Recipe, model: plan.Model, ref: stages.Reference, precision: str
) -> PreparedGraph:
    """convert(), then the graph's outputs against the FP32 reference; over the budget, or within
    it by less than its margin, convert() again with a search for nodes to keep wide.

    A graph that is over its accuracy budget even so is returned too: `verification.passed` says so.
    """
    budget = recipe.budget(precision)
    # The search itself sees first whether the graph is within the margin as it is.
    if PRECISIONS[precision].calibrated and budget.margin < 1 and recipe.search_tries:
        return _prepared(site, recipe, model, ref, precision, search=True)
    prepared = _prepared(site, recipe, model, ref, precision, search=False)
    within = judge(prepared.verification.outputs, budget.with_margin)
    if not within or not recipe.search_tries or PRECISIONS[precision].bits == 32:
        return prepared
    searched = _prepared(site, recipe, model, ref, precision, search=True)
    seconds = prepared.seconds + searched.seconds
    return searched.model_copy(update={"seconds": seconds})


def refuse_unchanged(precision: str, details: Mapping[str, JsonValue]) -> None:
    """Raises: PrecisionError for a 16-bit graph in which nothing computes in 16 bits."""
    if PRECISIONS[precision].bits == 16 and details.get("low_nodes") == 0:
        kept = cast("list[dict[str, JsonValue]]", details.get("kept_wide") or [])
        named = any(one["reason"] == BY_NAME for one in kept)
        raise PrecisionError(
            f"{precision}: nothing in the graph computes in {precision}",
            why="every operator stays in FP32: it would be an FP32 engine with another name",
            fix=f"ask for fp32 instead of {precision} in the recipe's precisions"
            + (", or take nodes out of its `keep_wide`" if named else ""),
        )


def operators(details: Mapping[str, JsonValue]) -> str:
    """How much of a graph computes in its precision, for people; empty where it is not known."""
    # Manifests of earlier versions spell them with an s.
    found = details.get("quantized_operators", details.get("quantised_operators"))
    if found is not None:
        able = details.get("quantizable_operators", details.get("quantisable_operators"))
        return f"{found} of {able} operators in 8 bits" if able else f"{found} operators in 8 bits"
    if "low_nodes" not in details:
        return ""
    wide = cast("dict[str, int]", details.get("wide_nodes") or {})
    return f"{details['low_nodes']} nodes in 16 bits, {sum(wide.values())} in FP32"


def _prepared(
    site: Site,
    recipe: Recipe,
    model: plan.Model,
    ref: stages.Reference,
    precision: str,
    *,
    search: bool,
) -> PreparedGraph:
    converted = convert(site, recipe, model, ref, precision, search=search)
    details = cast("dict[str, JsonValue]", converted.values.get("details") or {})
    refuse_unchanged(precision, details)
    graph = onnx_ref_of(converted)
    budget = recipe.budget(precision)
    comparing = recipe.verification.comparing

    def work(scratch: Path) -> StageOutput:
        path = materialize(site, graph, scratch / "in")
        result = verify_graph(path, site.cache.ensure(site.store, ref.npz), budget, comparing)
        return StageOutput(values={"verification": result.model_dump(mode="json")})

    key = stage_key(
        method=METHOD,
        graph=graph.digest,
        reference=ref.npz.digest,
        comparing=comparing.model_dump(mode="json"),
    )
    verified, cached = recorded(site, f"verify-{precision}", key, work)
    found = GraphVerification.model_validate(verified.values["verification"])
    # Recorded figures are checked against today's budget.
    judged = found.model_copy(
        update={
            "over_budget": judge(found.outputs, budget),
            "asked": ref.figures_key,
            "operators": operators(details),
            "random_data": recipe.verification_data.random,
        }
    )
    return PreparedGraph(
        use=precision_use(recipe, precision),
        graph=graph,
        reference=ref.npz,
        verification=judged,
        details=details,
        plugins=plugins.kept(site, recipe),
        notes=model.notes,
        seconds=converted.seconds + verified.seconds,
        cached=cached,
    )
