"""The stages from recipe to manifest, each looked up in the store before it runs.

A stage takes values and gives values; files travel through the store by digest, so two
stages may run on two machines. What a stage makes is recorded under a key of everything
that decided it: the same question is never worked out twice, by anyone.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from pydantic import JsonValue

from enginefarm import plan
from enginefarm.cache import BlobCache
from enginefarm.digest import sha256_bytes, sha256_file
from enginefarm.manifest import GraphVerification
from enginefarm.progress import report
from enginefarm.recipe import Recipe
from enginefarm.schema import Frozen, canonical_json
from enginefarm.spec import BlobRef, OnnxRef, PrecisionUse, ToolUse
from enginefarm.store import open_store
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.failures import writing
from enginefarm.store.records import StageRecord

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"


@dataclass(frozen=True)
class Site:
    """Where stages run: the store that everybody shares, and this machine's cache."""

    store: EngineStore
    cache: BlobCache

    @contextmanager
    def scratch(self) -> Generator[Path]:
        """A folder on the cache's disk, so that results move into it by rename."""
        root = self.cache.root / "scratch"
        with writing(root):
            root.mkdir(parents=True, exist_ok=True)
            path = Path(tempfile.mkdtemp(dir=root))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


def here() -> Site:
    """The site that the environment names (ENGINEFARM_STORE, ENGINEFARM_CACHE)."""
    return Site(store=open_store(), cache=BlobCache())


@dataclass(frozen=True)
class Produced:
    """What the work of a stage gives back."""

    files: Mapping[str, Path] = field(default_factory=dict[str, Path])
    values: Mapping[str, Any] = field(default_factory=dict[str, Any])


def stage_key(**parts: Any) -> str:
    """The key of everything that decides a stage's result."""
    return sha256_bytes(canonical_json(parts))


def recorded(
    site: Site, stage: str, key: str, work: Callable[[Path], Produced]
) -> tuple[StageRecord, bool]:
    """The stage's record, and whether it was there already.

    A record whose blobs have gone from the store is worked out again.
    """
    found = site.store.stage(stage, key)
    if found is not None and all(site.store.has_blob(ref) for ref in found.outputs.values()):
        report(stage, 1, 1, "cached")
        return found, True
    report(stage, 0, None)
    started = time.monotonic()
    with site.scratch() as scratch, writing(scratch):
        produced = work(scratch)
        outputs = {name: site.cache.add(path) for name, path in produced.files.items()}
    for ref in outputs.values():
        site.store.put_blob(site.cache.path(ref))
    record = StageRecord(
        stage=stage,
        key=key,
        outputs=outputs,
        values=dict(produced.values),
        seconds=time.monotonic() - started,
        created_at=datetime.now(UTC),
    )
    site.store.put_stage(record)
    report(stage, 1, 1)
    return record, False


# --- once a recipe -----------------------------------------------------------------------


class Exported(Frozen):
    onnx: OnnxRef
    outputs: tuple[str, ...]
    exporter: ToolUse
    seconds: float
    cached: bool


def export_key(recipe: Recipe) -> str:
    """Everything that decides the exported graph. Loads no torch."""
    from enginefarm.export import export_tool

    return stage_key(
        source=_source_digest(recipe),
        inputs=[tensor.model_dump(mode="json") for tensor in recipe.inputs],
        profiles=[profile.model_dump(mode="json") for profile in recipe.profiles],
        exporter=export_tool(recipe).model_dump(mode="json"),
    )


def export(site: Site, recipe: Recipe) -> Exported:
    """PyTorch (or ONNX as it came) -> ONNX, checked at every profile's min, opt and max.

    Raises: SourceError, UnsafeCheckpointError, ExportError, RecipeError.
    """
    from enginefarm.export import export_onnx, export_tool

    def work(scratch: Path) -> Produced:
        made = export_onnx(recipe, scratch)
        values = {"opset": made.opset, "outputs": list(made.outputs)}
        return Produced(files=_onnx_files(made.path), values=values)

    record, cached = recorded(site, "export", export_key(recipe), work)
    return Exported(
        onnx=_onnx_ref(record),
        outputs=tuple(record.values["outputs"]),  # type: ignore[arg-type]
        exporter=export_tool(recipe),
        seconds=record.seconds,
        cached=cached,
    )


def _source_digest(recipe: Recipe) -> str:
    from enginefarm.sources import source

    return source(recipe.source.kind).fingerprint(recipe.source, recipe.root)


class Reference(Frozen):
    """Verification inputs and their FP32 outputs from the source model, as an npz."""

    npz: BlobRef
    seconds: float
    cached: bool


def reference(site: Site, recipe: Recipe, outputs: tuple[str, ...]) -> Reference:
    """Runs the source model in FP32 on the recipe's verification data.

    outputs: the graph's output names, in order.
    Raises: CalibrationError for data that does not fit the inputs, SourceError.
    """
    from enginefarm.data import data_digest
    from enginefarm.export import export_tool
    from enginefarm.feeds import verification_data
    from enginefarm.reference import make_reference
    from enginefarm.sources import source

    def work(scratch: Path) -> Produced:
        loaded = source(recipe.source.kind).load(recipe.source, recipe.root, scratch)
        npz = make_reference(recipe, loaded, scratch / "reference.npz", outputs=outputs)
        return Produced(files={"npz": npz})

    settings = recipe.verification
    key = stage_key(
        source=_source_digest(recipe),
        inputs=[tensor.model_dump(mode="json") for tensor in recipe.inputs],
        runtime=export_tool(recipe).model_dump(mode="json"),
        data=data_digest(verification_data(recipe), recipe.root),
        settings=settings.model_dump(mode="json"),
        outputs=outputs,
    )
    record, cached = recorded(site, "reference", key, work)
    return Reference(npz=record.outputs["npz"], seconds=record.seconds, cached=cached)


class Slimmed(Frozen):
    model: plan.Model
    seconds: float
    cached: bool


def _slim_key(onnx: OnnxRef, slimmer: ToolUse) -> str:
    return stage_key(onnx=onnx.digest, slimmer=slimmer.model_dump(mode="json"))


def slim(site: Site, recipe: Recipe, exported: Exported) -> Slimmed:
    """OnnxSlim; refused when ONNX Runtime gives other numbers than before.

    Raises: SlimError.
    """
    from enginefarm import feeds
    from enginefarm.slim import slim_onnx, slim_tool

    slimmer = slim_tool()

    def work(scratch: Path) -> Produced:
        source = materialise(site, exported.onnx, scratch / "in")
        batch = feeds.sample(recipe)
        corners = [feeds.sized(batch, recipe, dims) for _, dims in feeds.corners(recipe)]
        made = slim_onnx(source, scratch / "out", corners)
        return Produced(files=_onnx_files(made.path), values={"opset": exported.onnx.opset})

    record, cached = recorded(site, "slim", _slim_key(exported.onnx, slimmer), work)
    model = plan.Model(
        onnx=_onnx_ref(record),
        exporter=exported.exporter,
        slimmer=slimmer,
        plugins=plugin_digests(recipe),
    )
    return Slimmed(model=model, seconds=record.seconds, cached=cached)


class Prepared(Frozen):
    """One precision of the model: its graph, and how far it strays from FP32."""

    use: PrecisionUse
    graph: OnnxRef
    reference: BlobRef
    verification: GraphVerification
    details: dict[str, JsonValue]
    seconds: float
    cached: bool


def precision_use(recipe: Recipe, name: str) -> PrecisionUse:
    """What decides that precision's graph. Cheap: reads no array, loads no library."""
    from enginefarm.data import data_digest
    from enginefarm.precisions import precision

    found = precision(name)
    digest = None
    if found.calibrated and recipe.calibration is not None:
        digest = data_digest(recipe.calibration.data, recipe.root)
    return found.use(recipe, digest)


def convert(site: Site, recipe: Recipe, model: plan.Model, name: str) -> StageRecord:
    """The graph rewritten to one precision: cast, or calibrated into Q/DQ.

    Raises: PrecisionError, CalibrationError.
    """
    from enginefarm.precisions import precision

    found = precision(name)

    def work(scratch: Path) -> Produced:
        source = materialise(site, model.onnx, scratch / "in")
        batches = _calibration_batches(recipe) if found.calibrated else ()
        made = found.convert(source, scratch / "out", recipe, batches)
        return Produced(
            files=_onnx_files(made.path),
            values={"opset": model.onnx.opset, "details": made.details},
        )

    use = precision_use(recipe, name)
    key = stage_key(onnx=model.onnx.digest, precision=use.model_dump(mode="json"))
    record, _ = recorded(site, f"precision-{name}", key, work)
    return record


def _calibration_batches(recipe: Recipe) -> Iterator[Any]:
    from enginefarm import data

    calibration = recipe.calibration
    assert calibration is not None, "the recipe was validated"
    return data.batches(
        calibration.data,
        root=recipe.root,
        inputs=recipe.inputs,
        batches=calibration.batches,
        batch_size=calibration.batch_size,
        seed=calibration.seed,
    )


def prepare(
    site: Site, recipe: Recipe, model: plan.Model, ref: Reference, precision: str
) -> Prepared:
    """convert(), then the graph's outputs against the FP32 reference.

    A graph over its accuracy budget is returned too: `verification.passed` says so.
    """
    from enginefarm.verify import verify_graph

    converted = convert(site, recipe, model, precision)
    graph = _onnx_ref(converted)
    budget = recipe.budget(precision)
    class_scores = recipe.verification.class_scores

    def work(scratch: Path) -> Produced:
        path = materialise(site, graph, scratch / "in")
        result = verify_graph(path, site.cache.ensure(site.store, ref.npz), budget, class_scores)
        return Produced(values={"verification": result.model_dump(mode="json")})

    key = stage_key(
        graph=graph.digest,
        reference=ref.npz.digest,
        budget=budget.model_dump(mode="json"),
        class_scores=class_scores,
    )
    verified, cached = recorded(site, f"verify-{precision}", key, work)
    return Prepared(
        use=precision_use(recipe, precision),
        graph=graph,
        reference=ref.npz,
        verification=GraphVerification.model_validate(verified.values["verification"]),
        details=cast("dict[str, JsonValue]", converted.values.get("details") or {}),
        seconds=converted.seconds + verified.seconds,
        cached=cached,
    )


# --- what is known without running anything ------------------------------------------------


def known_model(site: Site, recipe: Recipe) -> plan.Model | None:
    """The model as earlier runs recorded it; None when it has to be exported first."""
    from enginefarm.export import export_tool
    from enginefarm.slim import slim_tool

    exported = site.store.stage("export", export_key(recipe))
    if exported is None:
        return None
    slimmer = slim_tool()
    slimmed = site.store.stage("slim", _slim_key(_onnx_ref(exported), slimmer))
    if slimmed is None:
        return None
    return plan.Model(
        onnx=_onnx_ref(slimmed),
        exporter=export_tool(recipe),
        slimmer=slimmer,
        plugins=plugin_digests(recipe),
    )


def plugin_digests(recipe: Recipe) -> tuple[str, ...]:
    return tuple(sha256_file(recipe.root / path) for path in recipe.plugins)


# --- ONNX files by digest -------------------------------------------------------------------


def materialise(site: Site, onnx: OnnxRef, folder: Path) -> Path:
    """The model (and its external data) in a folder, by link where the disk allows."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, ref in ((MODEL_FILE, onnx.model), (DATA_FILE, onnx.data)):
        if ref is not None:
            _link(site.cache.ensure(site.store, ref), folder / name)
    return folder / MODEL_FILE


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _onnx_files(path: Path) -> dict[str, Path]:
    files = {"model": path}
    data = path.with_name(DATA_FILE)
    if data.exists():
        files["data"] = data
    return files


def _onnx_ref(record: StageRecord) -> OnnxRef:
    return OnnxRef(
        model=record.outputs["model"],
        data=record.outputs.get("data"),
        opset=int(str(record.values["opset"])),
    )
