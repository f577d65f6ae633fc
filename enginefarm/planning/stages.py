"""The stages from recipe to precision graphs, each looked up in the store before it runs.

A stage takes values and gives values; files travel through the store by digest, so two
stages may run on two machines.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import JsonValue

from enginefarm.digest import sha256_file
from enginefarm.documents.comparing import judge
from enginefarm.documents.manifest import GraphVerification
from enginefarm.documents.recipe import Recipe
from enginefarm.documents.spec import BlobRef, OnnxRef, PrecisionUse, ToolUse
from enginefarm.documents.stage import StageOutput, StageRecord
from enginefarm.errors import (
    EnginefarmError,
    ExportError,
    PrecisionError,
    RecipeError,
    SlimError,
    SourceError,
)
from enginefarm.graph.sources.local_file import local_file
from enginefarm.names import PRECISIONS
from enginefarm.planning import plan
from enginefarm.schema import Digest, Frozen
from enginefarm.store.site import (
    Site,
    found_record,
    here,
    materialise,
    onnx_ref_of,
    recorded,
    require_unchanged,
    stage_key,
)

if TYPE_CHECKING:
    from enginefarm.graph.work import Order

REFERENCE_METHOD = 2
"""How references are made: raise it when the same model and data may get another one."""

__all__ = ["ExportedModel", "PreparedGraph", "Reference", "Site", "SlimmedModel", "here"]


class ExportedModel(Frozen):
    onnx: OnnxRef
    outputs: tuple[str, ...]
    exporter: ToolUse
    seconds: float
    cached: bool
    notes: tuple[str, ...] = ()


def export_key(recipe: Recipe) -> str:
    """Everything that decides the exported graph. Loads no torch."""
    from enginefarm.graph.export import export_tool

    return stage_key(
        source=_source_digest(recipe),
        inputs=[tensor.model_dump(mode="json") for tensor in recipe.inputs],
        profiles=[profile.model_dump(mode="json") for profile in recipe.profiles],
        exporter=export_tool(recipe).model_dump(mode="json"),
    )


def export(site: Site, recipe: Recipe) -> ExportedModel:
    """PyTorch (or ONNX as it came) -> ONNX, checked at every profile's min, opt and max.

    Raises: SourceError, UnsafeCheckpointError, ExportError, RecipeError.
    """
    from enginefarm.graph.export import check_class_scores, export_tool

    def work(scratch: Path) -> StageOutput:
        order = _order(recipe, scratch)
        before = _reference_key(recipe, ())
        made = _in_child("export", order, what="export", error=ExportError)
        files = dict(made.files)
        npz = files.pop("reference", None)
        if npz is not None:
            require_unchanged("reference", before, _reference_key(recipe, ()))
            key = _reference_key(recipe, tuple(made.values["outputs"]))
            recorded(site, "reference", key, lambda _: StageOutput(files={"npz": npz}))
        return StageOutput(files=files, values=made.values)

    record, cached = recorded(
        site, "export", export_key(recipe), work, key_again=lambda: export_key(recipe)
    )
    exported = ExportedModel(
        onnx=onnx_ref_of(record),
        outputs=tuple(record.values["outputs"]),  # type: ignore[arg-type]
        exporter=export_tool(recipe),
        seconds=record.seconds,
        cached=cached,
        notes=_notes(record),
    )
    check_class_scores(recipe, exported.outputs, SourceError)
    return exported


def _operators(slimmed: StageRecord) -> dict[str, str]:
    """Of the slimmed graph; records of earlier versions do not say."""
    return cast("dict[str, str]", slimmed.values.get("operators") or {})


def _notes(*records: StageRecord) -> tuple[str, ...]:
    """What stages changed or left out, for people; records of earlier versions have none."""
    found = (cast("list[str]", record.values.get("notes") or []) for record in records)
    return tuple(note for notes in found for note in notes)


def _source_digest(recipe: Recipe) -> str:
    from enginefarm.graph.sources import source

    return source(recipe.source.kind).fingerprint(recipe.source, recipe.root)


class Reference(Frozen):
    """Verification inputs and their FP32 outputs from the source model, as an npz."""

    npz: BlobRef
    figures_key: Digest
    seconds: float
    cached: bool


def reference(site: Site, recipe: Recipe, outputs: tuple[str, ...]) -> Reference:
    """Runs the source model in FP32 on the recipe's verification data.

    outputs: the graph's output names, in order.
    Raises: CalibrationError for data that does not fit the inputs, SourceError.
    """

    def work(scratch: Path) -> StageOutput:
        order = _order(recipe, scratch, outputs=outputs)
        made = _in_child("reference", order, what="reference", error=SourceError)
        return StageOutput(files={"npz": made.files["reference"]})

    record, cached = recorded(
        site,
        "reference",
        _reference_key(recipe, outputs),
        work,
        key_again=lambda: _reference_key(recipe, outputs),
    )
    return Reference(
        npz=record.outputs["npz"],
        figures_key=figures_key(recipe, outputs),
        seconds=record.seconds,
        cached=cached,
    )


def _reference_key(recipe: Recipe, outputs: tuple[str, ...]) -> str:
    """Everything that decides the reference: cheap, as `export_key` is."""
    from enginefarm.graph.data import data_digest
    from enginefarm.graph.export import export_tool

    return stage_key(
        method=REFERENCE_METHOD,
        source=_source_digest(recipe),
        inputs=[tensor.model_dump(mode="json") for tensor in recipe.inputs],
        profiles=[profile.model_dump(mode="json") for profile in recipe.profiles],
        runtime=export_tool(recipe).model_dump(mode="json"),
        data=data_digest(recipe.verification_data, recipe.root),
        settings=recipe.verification.model_dump(mode="json"),
        outputs=outputs,
    )


def figures_key(recipe: Recipe, outputs: tuple[str, ...]) -> str:
    """What decides a graph's figures beside the graph: the reference, what outputs mean, and
    how graphs are verified. A budget only judges them."""
    from enginefarm.graph.verify import METHOD

    return stage_key(
        method=METHOD,
        reference=_reference_key(recipe, outputs),
        comparing=recipe.verification.comparing.model_dump(mode="json"),
    )


def _order(recipe: Recipe, scratch: Path, **more: Any) -> Order:
    """What the child is told. Files in S3 are brought here first: it has no credentials."""
    from enginefarm.graph.sources import source
    from enginefarm.graph.work import Order

    if "onnx" not in more:
        source(recipe.source.kind).fetch(recipe.source, scratch)
    return Order(recipe=recipe, root=recipe.root.absolute(), folder=scratch.absolute(), **more)


def _in_child(
    function: str, order: Order, *, what: str, error: type[EnginefarmError]
) -> StageOutput:
    from enginefarm.graph.work import run

    return run(function, order, what=what, error=error)


class SlimmedModel(Frozen):
    model: plan.Model
    seconds: float
    cached: bool


def slim_key(onnx: OnnxRef, slimmer: ToolUse) -> str:
    return stage_key(onnx=onnx.digest, slimmer=slimmer.model_dump(mode="json"))


def slim(site: Site, recipe: Recipe, exported: ExportedModel) -> SlimmedModel:
    """OnnxSlim; refused when ONNX Runtime gives other numbers than before.

    Raises: SlimError.
    """
    from enginefarm.graph.slim import slim_tool

    slimmer = slim_tool()

    def work(scratch: Path) -> StageOutput:
        graph = materialise(site, exported.onnx, scratch / "in")
        order = _order(recipe, scratch, onnx=graph.absolute())
        made = _in_child("slim", order, what="slimming", error=SlimError)
        return StageOutput(files=made.files, values={"opset": exported.onnx.opset, **made.values})

    record, cached = recorded(site, "slim", slim_key(exported.onnx, slimmer), work)
    model = plan.Model(
        onnx=onnx_ref_of(record),
        exporter=exported.exporter,
        slimmer=slimmer,
        plugins=plugin_digests(recipe),
        outputs=exported.outputs,
        notes=(*exported.notes, *_notes(record)),
        operators=_operators(record),
    )
    return SlimmedModel(model=model, seconds=record.seconds, cached=cached)


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
    from enginefarm.graph.data import data_digest
    from enginefarm.graph.precisions import precision

    found = precision(name)
    digest = None
    if PRECISIONS[name].calibrated and recipe.calibration is not None:
        digest = data_digest(recipe.calibration.data, recipe.root)
    return found.use(recipe, digest, data_digest(recipe.verification_data, recipe.root))


def convert(
    site: Site, recipe: Recipe, model: plan.Model, ref: Reference, name: str, *, search: bool
) -> StageRecord:
    """The graph rewritten to one precision: cast, or calibrated into Q/DQ.

    search: also look for nodes to keep wide, until the budget is met. What was measured is noted
    in the cache, and a search that was interrupted goes on from there.
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
        graph = materialise(site, model.onnx, scratch / "in")
        order = _order(
            recipe,
            scratch,
            onnx=graph.absolute(),
            precision=name,
            reference=site.cache.ensure(site.store, ref.npz).absolute(),
            memory=_memory(site, key) if search else None,
        )
        made = _in_child("convert", order, what=f"{name} conversion", error=PrecisionError)
        values = {"opset": model.onnx.opset, "details": made.values}
        return StageOutput(files=made.files, values=values)

    stage = f"search-{name}" if search else f"precision-{name}"
    record, _ = recorded(site, stage, key, work, key_again=decides)
    return record


def _memory(site: Site, key: str) -> Path:
    """Where the search notes what it measured."""
    folder = site.cache.root / "searches"
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / f"{key}.jsonl").absolute()


def prepare(
    site: Site, recipe: Recipe, model: plan.Model, ref: Reference, precision: str
) -> PreparedGraph:
    """convert(), then the graph's outputs against the FP32 reference; over the budget, convert()
    again with a search for nodes to keep wide.

    A graph that is over its accuracy budget even so is returned too: `verification.passed` says so.
    """
    prepared = _prepared(site, recipe, model, ref, precision, search=False)
    if prepared.verification.passed or not recipe.search_tries or precision == "fp32":
        return prepared
    searched = _prepared(site, recipe, model, ref, precision, search=True)
    seconds = prepared.seconds + searched.seconds
    return searched.model_copy(update={"seconds": seconds})


def refuse_unchanged(precision: str, details: Mapping[str, JsonValue]) -> None:
    """Raises: PrecisionError for a 16-bit graph in which nothing computes in 16 bits."""
    if precision in ("fp16", "bf16") and details.get("low_nodes") == 0:
        raise PrecisionError(
            f"{precision}: nothing in the graph computes in {precision}",
            why="every operator stays in FP32: it would be an FP32 engine of another name",
            fix=f"take {precision} out of the recipe's precisions, or keep fewer nodes wide",
        )


def operators(details: Mapping[str, JsonValue]) -> str:
    """How much of a graph computes in its precision, for people; empty where it is not known."""
    found = details.get("quantised_operators", details.get("quantized_operators"))
    if found is not None:
        able = details.get("quantisable_operators")
        return f"{found} of {able} operators in 8 bits" if able else f"{found} operators in 8 bits"
    if "low_nodes" not in details:
        return ""
    wide = cast("dict[str, int]", details.get("wide_nodes") or {})
    return f"{details['low_nodes']} nodes in 16 bits, {sum(wide.values())} in FP32"


def _prepared(
    site: Site, recipe: Recipe, model: plan.Model, ref: Reference, precision: str, *, search: bool
) -> PreparedGraph:
    from enginefarm.graph.verify import METHOD, verify_graph

    converted = convert(site, recipe, model, ref, precision, search=search)
    details = cast("dict[str, JsonValue]", converted.values.get("details") or {})
    refuse_unchanged(precision, details)
    graph = onnx_ref_of(converted)
    budget = recipe.budget(precision)
    comparing = recipe.verification.comparing

    def work(scratch: Path) -> StageOutput:
        path = materialise(site, graph, scratch / "in")
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
    # Recorded figures are judged by the budget of today.
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
        plugins=_kept_plugins(site, recipe),
        notes=model.notes,
        seconds=converted.seconds + verified.seconds,
        cached=cached,
    )


def known_model(site: Site, recipe: Recipe) -> plan.Model | None:
    """The model as earlier runs recorded it; None when it has to be exported first."""
    from enginefarm.graph.export import check_class_scores, export_tool
    from enginefarm.graph.slim import slim_tool

    exported = found_record(site, "export", export_key(recipe))
    if exported is None:
        return None
    check_class_scores(recipe, cast("list[str]", exported.values["outputs"]), SourceError)
    slimmer = slim_tool()
    slimmed = found_record(site, "slim", slim_key(onnx_ref_of(exported), slimmer))
    if slimmed is None:
        return None
    return plan.Model(
        onnx=onnx_ref_of(slimmed),
        exporter=export_tool(recipe),
        slimmer=slimmer,
        plugins=plugin_digests(recipe),
        outputs=tuple(exported.values["outputs"]),  # type: ignore[arg-type]
        notes=_notes(exported, slimmed),
        operators=_operators(slimmed),
    )


def _kept_plugins(site: Site, recipe: Recipe) -> tuple[BlobRef, ...]:
    """The plugin libraries in the store, where the builders find them."""
    refs = tuple(site.cache.add(path) for path in _plugins(recipe))
    for ref in refs:
        site.store.put_blob(site.cache.path(ref))
    return refs


def plugin_digests(recipe: Recipe) -> tuple[str, ...]:
    return tuple(sha256_file(path) for path in _plugins(recipe))


def _plugins(recipe: Recipe) -> list[Path]:
    """Raises: RecipeError for a library that is not there, or not a regular file."""
    return [
        local_file(path, recipe.root, field="plugins", error=RecipeError) for path in recipe.plugins
    ]
