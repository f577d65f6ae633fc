"""Engines as a model package of ONNX Runtime: a variant for each execution provider, and the CPU.

manifest.json                ONNX Runtime's own: which variant is for which provider
cpu/model.onnx[.data]        a graph of the same model, for hosts without a GPU
tensorrt-rtx/model.onnx      one EPContext node, which names engine.plan beside it
tensorrt-rtx/engine.plan     the engine
tensorrt-rtx/engine.json     its manifest
reference.npz                inputs, and the FP32 outputs of the model itself

ONNX Runtime takes the first variant of a provider, and tells no GPU from another. So a package has
one engine for each provider. onnxruntime 1.32 writes and reads the format; decision 0240.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from enginefarm.documents.builder import DType
from enginefarm.documents.manifest import Manifest
from enginefarm.documents.spec import OnnxRef
from enginefarm.documents.thresholds import DEFAULT_BUDGETS
from enginefarm.errors import (
    AccuracyError,
    PrecisionError,
    StoreDenied,
    StoreMissing,
    ToolchainError,
    UsageError,
)
from enginefarm.graph import ort
from enginefarm.names import PRECISION_ORDER, PrecisionName, runtime_of
from enginefarm.pulling.checks import accurate, is_caveat
from enginefarm.release.package_check import COMPONENT, CPU, Checked, Request, checked
from enginefarm.store.appearing import write_atomically
from enginefarm.store.budgets import Budgets
from enginefarm.store.copies import clone_checked
from enginefarm.store.disk import writing
from enginefarm.store.site import Site, materialise

RTX_PROVIDER = "NvTensorRTRTXExecutionProvider"
CAPABILITIES = {RTX_PROVIDER: ("8.6", "8.9", "12.0", "12.1")}
"""Provider -> the compute capabilities that it starts on, of those that plans are built for; a
provider that is not here starts on all. onnxruntime-ep-nv-tensorrt-rtx 0.5.0 refuses the others:
it "only supports RTX devices with compute capabilities 86, 89, 120 and above"."""
EMBEDDED = "onnxruntime-tensorrt"
"""The runtime whose artifacts are EPContext models already."""
ONNX_TYPES: dict[DType, str] = {
    "float32": "FLOAT",
    "float16": "FLOAT16",
    "bfloat16": "BFLOAT16",
    "int64": "INT64",
    "int32": "INT32",
    "int8": "INT8",
    "uint8": "UINT8",
    "bool": "BOOL",
}


@dataclass(frozen=True)
class Variant:
    """One engine of a package. gpus: the labels that it serves."""

    name: str
    provider: str
    manifest: Manifest
    gpus: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """What goes into a package, and a line for each engine that was left out."""

    variants: tuple[Variant, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class CpuGraph:
    """A graph that the CPU variant may have. precision: it is judged by that one's budget."""

    onnx: OnnxRef
    precision: PrecisionName


@dataclass(frozen=True)
class Package:
    """A package on the disk. cpu: the CPU variant's precision, and what its check found."""

    folder: Path
    choice: Choice
    cpu: PrecisionName
    checked: Checked


def choose(
    manifests: Iterable[Manifest],
    recipe: str,
    *,
    precision: PrecisionName | None = None,
    gpu: str | None = None,
    budgets: Budgets | None = None,
) -> Choice:
    """The newest engine for each execution provider, all in one precision.

    precision: None takes the first of PRECISION_ORDER that can be packaged.
    Raises: ToolchainError where no engine can be packaged, with each one's reason; UsageError
    where a provider would have several.
    """
    wanted = [one for one in manifests if gpu in (None, one.gpu)]
    fits: list[Manifest] = []
    notes: list[tuple[PrecisionName, str]] = []
    for one in sorted(wanted, key=lambda one: (one.gpu, one.precision, one.created_at)):
        why = _misfit(one, budgets or Budgets())
        if why:
            line = f"{one.spec.label} {one.spec_digest[:12]} is left out: {why}"
            notes.append((one.precision, line))
        else:
            fits.append(one)
    order = (precision,) if precision else PRECISION_ORDER
    best = next((name for name in order if any(one.precision == name for one in fits)), None)
    if best is None:
        of = f"{recipe}{f' for {gpu}' if gpu else ''}{f' in {precision}' if precision else ''}"
        raise ToolchainError(
            f"package: {of} has no engine that ONNX Runtime can load",
            why="\n       ".join(line for _, line in notes) or "there is no engine at all",
            fix="build one with toolchain tensorrt, trtexec, ort-trt or tensorrt-rtx",
        )
    newest: dict[tuple[str, str], Manifest] = {}
    for one in sorted(fits, key=lambda one: (one.created_at, one.spec_digest)):
        if one.precision == best:
            newest[(_provider(one), one.gpu)] = one
    providers = dict.fromkeys(provider for provider, _ in newest)
    return Choice(
        variants=tuple(
            _variant(recipe, provider, [one for (of, _), one in newest.items() if of == provider])
            for provider in providers
        ),
        notes=tuple(line for of, line in notes if of == best),
    )


def _variant(recipe: str, provider: str, engines: list[Manifest]) -> Variant:
    different = {one.engine.digest for one in engines}
    gpus = tuple(sorted(one.gpu for one in engines))
    if len(different) > 1:
        raise UsageError(
            f"package: {recipe} has {len(different)} different engines for {provider} in "
            f"{engines[0].precision}, for {', '.join(gpus)}",
            why="a model package has one for each provider: ONNX Runtime takes the first, and does "
            "not ask which GPU it was built for",
            fix=f"write a package for each GPU: --gpu {gpus[0]}",
        )
    first = min(engines, key=lambda one: one.gpu)
    return Variant(runtime_of(first.spec.toolchain.name)[0], provider, first, gpus)


def cpu_engines(choice: Choice, engines: Iterable[Manifest]) -> list[Manifest]:
    """The FP32 engines of the model that was chosen: the CPU variant may have their graph."""
    model = choice.variants[0].manifest.spec.onnx_digest
    return [one for one in engines if (one.spec.onnx_digest, one.precision) == (model, "fp32")]


def _provider(manifest: Manifest) -> str:
    return runtime_of(manifest.spec.toolchain.name)[1].provider


def _misfit(manifest: Manifest, budgets: Budgets) -> str:
    """Why an engine cannot be packaged; empty where it can."""
    provider, spec = _provider(manifest), manifest.spec
    if not provider:
        return f"ONNX Runtime has no execution provider that loads plans of {spec.toolchain.name}"
    starts_on = CAPABILITIES.get(provider)
    if starts_on is not None and spec.gpu.compute_capability not in starts_on:
        return f"{provider} starts only on compute capability {', '.join(starts_on)}"
    if len(spec.profiles) > 1:
        return f"it has {len(spec.profiles)} profiles, and ONNX Runtime runs only the first"
    if spec.plugins:
        return "it needs plugin libraries, which a package cannot bring"
    if manifest.reference is None:
        return "its manifest names no reference outputs, so that nothing could be checked"
    if manifest.device_verification.status == "failed":
        return f"it failed verification on the device: {manifest.device_verification.reason}"
    return "; ".join(str(one) for one in accurate(manifest, budgets) if not is_caveat(one))


def write(
    site: Site,
    choice: Choice,
    others: Iterable[Manifest],
    folder: Path,
    *,
    name: str,
    version: str,
    budgets: Budgets,
) -> Package:
    """Writes the package, opens it again with ONNX Runtime, and runs its CPU variant on the
    reference inputs. The folder appears when all of that was well.

    others: the engines of `cpu_engines`.
    Raises: UsageError for a folder that holds something; ToolchainError without onnxruntime 1.32;
    AccuracyError where no graph is within its budget on the CPU; what the store raises.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"package: {folder} exists and is not an empty folder", fix="name another")
    writer = _writer()
    main = choice.variants[0].manifest
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name[:100]}.", dir=folder.parent))
    try:
        with writing(made):
            package = writer()
            package.set_metadata(name, version, f"{name} {main.precision}, written by enginefarm")
            component = {"variants": described(choice.variants)}
            package.set_component_inline(COMPONENT, json.dumps(component))
            package.commit(str(made))
            for variant in choice.variants:
                _write_engine(site, variant, made / variant.name)
            assert main.reference is not None  # _misfit
            reference = made / "reference.npz"
            clone_checked(site.cache.ensure(site.store, main.reference), reference, main.reference)
            cpu, found = _write_cpu(site, main, others, made, budgets)
            made.chmod(0o755)
            if folder.exists():
                folder.rmdir()
            made.rename(folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return Package(folder, choice, cpu, found)


def _writer() -> Any:
    """onnxruntime.ModelPackage. Raises: ToolchainError for a version that does not have it."""
    found = getattr(import_module("onnxruntime"), "ModelPackage", None)
    if found is None:
        raise ToolchainError(
            f"package: {ort.version()} cannot write model packages",
            fix="pip install 'onnxruntime>=1.32'",
        )
    return found


def described(variants: Iterable[Variant]) -> dict[str, Any]:
    """The variants as manifest.json has them: those of GPUs, and the CPU."""
    model: dict[str, Any] = {"model_file": "model.onnx"}
    found: dict[str, Any] = {}
    for one in variants:
        spec = one.manifest.spec
        said = {
            "spec_digest": one.manifest.spec_digest,
            "engine_sha256": one.manifest.engine.digest,
            "precision": one.manifest.precision,
            "gpus": list(one.gpus),
            "needs": f"{spec.toolchain.name} {spec.toolchain.build}, CUDA {spec.toolchain.cuda}",
            "on_device": one.manifest.device_verification.status,
        }
        found[one.name] = {
            "ep": one.provider,
            "device": "gpu",
            "executor_info": {"ort": model},
            "additional_metadata": {"enginefarm": said},
        }
    # As the graph was verified: ort.py says what these optimizers do to it.
    options = {"optimization.disable_specified_optimizers": ";".join(ort.DISABLED_OPTIMIZERS)}
    found[CPU] = {
        "ep": "CPUExecutionProvider",
        "device": "cpu",
        "executor_info": {"ort": {**model, "session_options": options}},
    }
    return found


def _write_engine(site: Site, variant: Variant, folder: Path) -> None:
    manifest = variant.manifest
    folder.mkdir()
    blob = site.cache.ensure(site.store, manifest.engine)
    if variant.name == EMBEDDED:
        clone_checked(blob, folder / "model.onnx", manifest.engine)
    else:
        clone_checked(blob, folder / "engine.plan", manifest.engine)
        (folder / "model.onnx").write_bytes(context_model(manifest, variant.provider))
    write_atomically(folder / "engine.json", manifest.canonical_json())


def context_model(manifest: Manifest, provider: str) -> bytes:
    """An ONNX model of one node that names engine.plan: how providers take what is built."""
    from onnx import TensorProto, helper

    def described(role: str) -> list[Any]:
        return [
            helper.make_tensor_value_info(
                one.name, getattr(TensorProto, ONNX_TYPES[one.dtype]), _dims(one.shape, one.dims)
            )
            for one in manifest.tensors
            if one.role == role
        ]

    inputs, outputs = described("input"), described("output")
    node = helper.make_node(
        "EPContext",
        [one.name for one in inputs],
        [one.name for one in outputs],
        name=manifest.recipe,
        domain="com.microsoft",
        main_context=1,
        embed_mode=0,
        ep_cache_context="engine.plan",
        source=provider,
        partition_name=manifest.recipe,
        hardware_architecture=manifest.spec.gpu.compute_capability.replace(".", ""),
        ep_sdk_version=manifest.spec.toolchain.build,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], manifest.recipe, inputs, outputs)
    made = helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="enginefarm")
    data: bytes = made.SerializeToString(deterministic=True)
    return data


def _dims(shape: tuple[int, ...], names: tuple[str | None, ...]) -> list[int | str | None]:
    """-1 is a dynamic dim; manifests of earlier versions have no names of them."""
    named = names or (None,) * len(shape)
    return [name if dim < 0 else dim for dim, name in zip(shape, named, strict=True)]


def _write_cpu(
    site: Site, main: Manifest, others: Iterable[Manifest], package: Path, budgets: Budgets
) -> tuple[PrecisionName, Checked]:
    """The first graph that is right on the CPU, as ONNX Runtime itself runs it. Returns its
    precision.

    Raises: AccuracyError, with the reason for each graph.
    """
    refused: list[str] = []
    for graph in cpu_graphs(site, main, others):
        folder = package / CPU
        shutil.rmtree(folder, ignore_errors=True)
        materialise(site, graph.onnx, folder)
        asked = Request(
            package=package,
            reference=package / "reference.npz",
            tensors=main.tensors,
            budget=budgets.of.get(graph.precision, DEFAULT_BUDGETS[graph.precision]),
            comparing=main.verification.comparing,
        )
        try:
            found = checked(asked)
        except PrecisionError as error:
            refused.append(f"{graph.precision}: {error.what}: {error.why}")
            continue
        if not found.over_budget:
            return graph.precision, found
        refused.append(f"{graph.precision}: {'; '.join(found.over_budget)}")
    raise AccuracyError(
        f"package: no graph of {main.recipe} is right on the CPU with this ONNX Runtime",
        why="\n       ".join(refused),
        fix="add fp32 to the recipe's precisions, build it, and package again",
    )


def cpu_graphs(site: Site, main: Manifest, others: Iterable[Manifest]) -> list[CpuGraph]:
    """Graphs of the very model that the engine was made from: FP32 first, then the engine's."""
    found = [CpuGraph(one.graph, one.precision) for one in others]
    try:
        blob = site.store.blob(main.spec.onnx_digest)
    except (StoreMissing, StoreDenied):
        # It has external data, or the engine came from another store. S3 tells a key that may not
        # list blobs that a missing one is denied (infra/s3-policies/pull.json).
        pass
    else:
        found.append(CpuGraph(OnnxRef(model=blob, opset=main.graph.opset), "fp32"))
    found.append(CpuGraph(main.graph, main.precision))
    by_digest: Mapping[str, CpuGraph] = {one.onnx.digest: one for one in reversed(found)}
    return [one for one in found if by_digest[one.onnx.digest] is one]
