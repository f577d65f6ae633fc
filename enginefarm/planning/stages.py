"""The stages from recipe to precision graphs, each looked up in the store before it runs.

A stage takes values and returns values; files travel through the store by digest, so two
stages may run on two machines.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any, cast

from enginefarm.documents.recipe import Recipe
from enginefarm.documents.spec import BlobRef, OnnxRef, ToolUse
from enginefarm.documents.stage import StageOutput, StageRecord
from enginefarm.errors import ExportError, SlimError, SourceError
from enginefarm.graph.exporting.use import check_class_scores, export_tool, slim_tool
from enginefarm.graph.order import Order
from enginefarm.graph.precisions.use import RULES_VERSION
from enginefarm.graph.samples.data import data_digest
from enginefarm.graph.sources import source
from enginefarm.graph.verification.verify import METHOD
from enginefarm.graph.work import run as in_child
from enginefarm.planning import plan, plugins
from enginefarm.schema import Digest, Frozen
from enginefarm.store.site import (
    Site,
    found_record,
    here,
    materialize,
    onnx_ref_of,
    recorded,
    require_unchanged,
    stage_key,
)

REFERENCE_METHOD = 4
"""How references are made: raise it when the same model and data may get another one."""

__all__ = ["ExportedModel", "Reference", "Site", "SlimmedModel", "here"]


class ExportedModel(Frozen):
    onnx: OnnxRef
    outputs: tuple[str, ...]
    exporter: ToolUse
    seconds: float
    cached: bool
    notes: tuple[str, ...] = ()


def export_key(recipe: Recipe) -> str:
    """Everything that decides the exported graph. Loads no torch."""
    return stage_key(**_of_model(recipe), exporter=export_tool(recipe).model_dump(mode="json"))


_BEGUN: dict[str, Future[ExportedModel]] = {}
"""Exports that this process has begun before anybody asked for them, by key."""


def begin_export(pool: ThreadPoolExecutor, site: Site, recipe: Recipe) -> Future[ExportedModel]:
    """Exports in a thread of the pool. The next `export` of this model waits for the result."""
    key = export_key(recipe)
    _BEGUN[key] = pool.submit(copy_context().run, _export, site, recipe, key)
    return _BEGUN[key]


def export(site: Site, recipe: Recipe) -> ExportedModel:
    """PyTorch (or the original ONNX) -> ONNX, checked at every profile's min, opt and max.

    Raises: SourceError, UnsafeCheckpointError, ExportError, RecipeError.
    """
    key = export_key(recipe)
    begun = _BEGUN.pop(key, None)
    return _export(site, recipe, key) if begun is None else begun.result()


def _export(site: Site, recipe: Recipe, key: str) -> ExportedModel:
    def work(scratch: Path) -> StageOutput:
        order = order_of(recipe, scratch)
        before = _reference_key(recipe, ())
        made = in_child("export", order, what="export", error=ExportError)
        require_unchanged("reference", before, _reference_key(recipe, ()))
        _record_ahead(site, recipe, made)
        return StageOutput(
            files={name: made.files[name] for name in ("model", "data") if name in made.files},
            values={name: made.values[name] for name in ("opset", "outputs", "notes")},
        )

    record, cached = recorded(site, "export", key, work, key_again=lambda: export_key(recipe))
    return _exported(recipe, record, cached=cached)


def _record_ahead(site: Site, recipe: Recipe, made: StageOutput) -> None:
    """What the export's process made for later stages, recorded as theirs."""

    def record(stage: str, key: str, output: StageOutput) -> StageRecord:
        return recorded(site, stage, key, lambda _: output)[0]

    values, files = made.values, made.files
    with ThreadPoolExecutor(1) as pool:  # they are large, and uploaded side by side
        referenced = slimmed = None
        if "reference" in files:
            key = _reference_key(recipe, tuple(values["outputs"]))
            output = StageOutput(files={"npz": files["reference"]})
            referenced = pool.submit(copy_context().run, record, "reference", key, output)
        if "slim-model" in files:
            graph = OnnxRef(model=site.cache.add(files["model"]), opset=values["opset"])
            output = StageOutput(
                files={"model": files["slim-model"]},
                values={"opset": graph.opset, **values["slim"]},
            )
            slimmed = record("slim", slim_key(graph, slim_tool()), output)
    reference = referenced and referenced.result()
    if reference and slimmed and values.get("largest") is not None:
        key = ranges_key(onnx_ref_of(slimmed), reference.outputs["npz"])
        record("ranges", key, StageOutput(values={"largest": values["largest"]}))


def ranges_key(onnx: OnnxRef, npz: BlobRef) -> str:
    """The key of the largest value of each tensor of the slimmed graph on the reference's data."""
    return stage_key(method=RULES_VERSION, onnx=onnx.digest, reference=npz.digest)


def _exported(recipe: Recipe, record: StageRecord, *, cached: bool) -> ExportedModel:
    """Raises: SourceError when the recipe names an output that does not exist."""
    exported = ExportedModel(
        onnx=onnx_ref_of(record),
        outputs=tuple(cast("list[str]", record.values["outputs"])),
        exporter=export_tool(recipe),
        seconds=record.seconds,
        cached=cached,
        notes=_notes(record),
    )
    check_class_scores(recipe, exported.outputs, SourceError)
    return exported


def _notes(record: StageRecord) -> tuple[str, ...]:
    """What a stage changed or left out, for people; records of earlier versions have none."""
    return tuple(cast("list[str]", record.values.get("notes") or []))


def _of_model(recipe: Recipe) -> dict[str, Any]:
    """What decides the model and the sizes that it runs at."""
    return {
        "source": source(recipe.source.kind).fingerprint(recipe.source, recipe.root),
        "inputs": [tensor.model_dump(mode="json") for tensor in recipe.inputs],
        "profiles": [profile.model_dump(mode="json") for profile in recipe.profiles],
    }


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
        order = order_of(recipe, scratch, outputs=outputs)
        made = in_child("reference", order, what="reference", error=SourceError)
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
    return stage_key(
        method=REFERENCE_METHOD,
        **_of_model(recipe),
        runtime=export_tool(recipe).model_dump(mode="json"),
        data=data_digest(recipe.verification_data, recipe.root),
        settings=recipe.verification.model_dump(mode="json"),
        outputs=outputs,
    )


def figures_key(recipe: Recipe, outputs: tuple[str, ...]) -> str:
    """What decides a graph's figures, except the graph: the reference, what outputs mean, and
    how graphs are verified. The budget is only compared with them."""
    return stage_key(
        method=METHOD,
        reference=_reference_key(recipe, outputs),
        comparing=recipe.verification.comparing.model_dump(mode="json"),
    )


def order_of(recipe: Recipe, scratch: Path, **more: Any) -> Order:
    """What the child is told. Files in S3 are brought here first: it has no credentials."""
    if "onnx" not in more:
        source(recipe.source.kind).fetch(recipe.source, scratch)
    return Order(recipe=recipe, root=recipe.root.absolute(), folder=scratch.absolute(), **more)


class SlimmedModel(Frozen):
    model: plan.Model
    seconds: float
    cached: bool


def slim_key(onnx: OnnxRef, slimmer: ToolUse) -> str:
    return stage_key(onnx=onnx.digest, slimmer=slimmer.model_dump(mode="json"))


def slim(site: Site, recipe: Recipe, exported: ExportedModel) -> SlimmedModel:
    """OnnxSlim; its graph is refused when ONNX Runtime computes different numbers from it.

    Raises: SlimError.
    """
    slimmer = slim_tool()

    def work(scratch: Path) -> StageOutput:
        graph = materialize(site, exported.onnx, scratch / "in")
        order = order_of(recipe, scratch, onnx=graph.absolute())
        made = in_child("slim", order, what="slimming", error=SlimError)
        return StageOutput(files=made.files, values={"opset": exported.onnx.opset, **made.values})

    record, cached = recorded(site, "slim", slim_key(exported.onnx, slimmer), work)
    model = _model(recipe, exported, record, slimmer)
    return SlimmedModel(model=model, seconds=record.seconds, cached=cached)


def _model(
    recipe: Recipe, exported: ExportedModel, slimmed: StageRecord, slimmer: ToolUse
) -> plan.Model:
    operators = slimmed.values.get("operators") or {}  # records of earlier versions have none
    return plan.Model(
        onnx=onnx_ref_of(slimmed),
        exporter=exported.exporter,
        slimmer=slimmer,
        plugins=plugins.digests(recipe),
        outputs=exported.outputs,
        notes=(*exported.notes, *_notes(slimmed)),
        operators=cast("dict[str, str]", operators),
    )


def known_model(site: Site, recipe: Recipe) -> plan.Model | None:
    """The model as earlier runs recorded it; None when it has to be exported first."""
    record = found_record(site, "export", export_key(recipe))
    if record is None:
        return None
    exported, slimmer = _exported(recipe, record, cached=True), slim_tool()
    slimmed = found_record(site, "slim", slim_key(exported.onnx, slimmer))
    return None if slimmed is None else _model(recipe, exported, slimmed, slimmer)
