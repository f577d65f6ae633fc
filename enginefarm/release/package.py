"""Engines as a model package of ONNX Runtime: a variant for each execution provider, and the CPU.

manifest.json                ONNX Runtime's own: which variant is for which provider
cpu/model.onnx[.data]        a graph of the same model, for hosts without a GPU
tensorrt-rtx/model.onnx      one EPContext node, which names engine.plan next to it
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

from enginefarm.documents.builder import DTYPES
from enginefarm.documents.comparing import OutputComparison
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
from enginefarm.graph.model import ort
from enginefarm.names import RUNTIMES, PrecisionName
from enginefarm.release.package_check import (
    COMPONENT,
    CPU,
    CheckRequest,
    CheckResult,
    check_package,
)
from enginefarm.release.package_choice import Choice, Variant
from enginefarm.store.budgets import Budgets
from enginefarm.store.disk import clone_checked, write_atomically, writing
from enginefarm.store.site import Site, materialize


@dataclass(frozen=True)
class CpuGraph:
    """A graph that the CPU variant may have. precision: it is judged by that one's budget.
    measured: its figures, where an engine of it was published."""

    onnx: OnnxRef
    precision: PrecisionName
    measured: tuple[OutputComparison, ...] = ()


@dataclass(frozen=True)
class Package:
    """A package on the disk. cpu: the CPU variant's precision, and what its check found."""

    folder: Path
    cpu: PrecisionName
    checked: CheckResult


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
        raise UsageError(
            f"package: {folder} exists and is not an empty folder", fix="name another folder"
        )
    writer = _writer()
    main = choice.variants[0].manifest
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name[:100]}.", dir=folder.parent))
    try:
        with writing(made):
            package = writer()
            package.set_metadata(name, version, f"{name} {main.precision}, written by enginefarm")
            component = {"variants": variants_json(choice.variants)}
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
    return Package(folder, cpu, found)


def _writer() -> Any:
    """onnxruntime.ModelPackage. Raises: ToolchainError for a version that does not have it."""
    found = getattr(import_module("onnxruntime"), "ModelPackage", None)
    if found is None:
        raise ToolchainError(
            f"package: {ort.version()} cannot write model packages",
            fix="pip install 'onnxruntime>=1.32'",
        )
    return found


def variants_json(variants: Iterable[Variant]) -> dict[str, Any]:
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
    if RUNTIMES[variant.name].context_model:
        clone_checked(blob, folder / "model.onnx", manifest.engine)
    else:
        clone_checked(blob, folder / "engine.plan", manifest.engine)
        (folder / "model.onnx").write_bytes(context_model(manifest, variant.provider))
    write_atomically(folder / "engine.json", manifest.canonical_json())


def context_model(manifest: Manifest, provider: str) -> bytes:
    """An ONNX model of one node that names engine.plan: how providers take what is built."""
    from onnx import TensorProto, helper

    def values(role: str) -> list[Any]:
        return [
            helper.make_tensor_value_info(
                one.name, getattr(TensorProto, DTYPES[one.dtype].onnx), _dims(one.shape, one.dims)
            )
            for one in manifest.tensors
            if one.role == role
        ]

    inputs, outputs = values("input"), values("output")
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
) -> tuple[PrecisionName, CheckResult]:
    """The first graph that is right on the CPU, as ONNX Runtime itself runs it. Returns its
    precision.

    Raises: AccuracyError, with the reason for each graph.
    """
    refused: list[str] = []
    for graph in cpu_graphs(site, main, others):
        folder = package / CPU
        shutil.rmtree(folder, ignore_errors=True)
        materialize(site, graph.onnx, folder)
        asked = CheckRequest(
            package=package,
            reference=package / "reference.npz",
            tensors=main.tensors,
            budget=budgets.of.get(graph.precision, DEFAULT_BUDGETS[graph.precision]),
            comparing=main.verification.comparing,
            measured=graph.measured,
        )
        try:
            found = check_package(asked)
        except PrecisionError as error:
            refused.append(f"{graph.precision}: {error.what}: {error.why}")
            continue
        if not found.over_budget:
            return graph.precision, found
        refused.append(f"{graph.precision}: {'; '.join(found.over_budget)}")
    raise AccuracyError(
        f"package: no graph of {main.recipe} is accurate on the CPU with this ONNX Runtime",
        why="\n       ".join(refused),
        fix="add fp32 to the recipe's precisions, build it, and package again",
    )


def _published(manifest: Manifest) -> CpuGraph:
    return CpuGraph(manifest.graph, manifest.precision, manifest.verification.outputs)


def cpu_graphs(site: Site, main: Manifest, others: Iterable[Manifest]) -> list[CpuGraph]:
    """Graphs of the model that the engine was made from: FP32 first, then the engine's."""
    found = [_published(one) for one in others]
    try:
        blob = site.store.blob(main.spec.onnx_digest)
    except (StoreMissing, StoreDenied):
        # It has external data, or the engine came from another store. S3 tells a key that may not
        # list blobs that a missing one is denied (infra/s3-policies/pull.json).
        pass
    else:
        found.append(CpuGraph(OnnxRef(model=blob, opset=main.graph.opset), "fp32"))
    found.append(_published(main))
    by_digest: Mapping[str, CpuGraph] = {one.onnx.digest: one for one in reversed(found)}
    return [one for one in found if by_digest[one.onnx.digest] is one]
