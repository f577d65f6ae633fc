"""A CycloneDX 1.6 bill of materials of one engine: what it was made from, and with what.

Everything in it but the model's license comes from the manifest, which the engine's signature
covers, so the same engine has the same document. What the manifest does not know, such as the
packages that its packages need, is left out, and the document says so in `compositions`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from enginefarm import __version__
from enginefarm.documents.manifest import Manifest, TensorInfo
from enginefarm.documents.spec import BlobRef, ToolUse
from enginefarm.names import runtime_of
from enginefarm.store.signing import attestation_key

SPEC_VERSION = "1.6"

Json = dict[str, Any]


def bom(manifest: Manifest, *, signed: bool, license_: str = "") -> Json:
    """The document, as JSON values.

    signed: whether the store has a signature of the engine. license_: of the model, as an SPDX
    expression; empty: not known.
    """
    components = [*_components(manifest)]
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC_VERSION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, manifest.spec_digest)}",
        "version": 1,
        "metadata": {
            "timestamp": manifest.created_at.isoformat(),
            "tools": {
                "components": [
                    {"type": "application", "name": "enginefarm", "version": __version__}
                ]
            },
            "component": _engine(manifest, signed) | _licenses(license_),
        },
        "components": components,
        "dependencies": [
            {"ref": ENGINE, "dependsOn": [one["bom-ref"] for one in components]},
            *({"ref": one["bom-ref"]} for one in components),
        ],
        "compositions": [{"aggregate": "incomplete", "assemblies": [ENGINE]}],
    }


ENGINE = "engine"


def _engine(manifest: Manifest, signed: bool) -> Json:
    spec = manifest.spec
    made: Json = {
        "type": "machine-learning-model",
        "bom-ref": ENGINE,
        "name": f"{manifest.recipe}/{spec.label}",
        "version": manifest.spec_digest,
        "description": f"An engine for {spec.gpu.label} in {spec.precision.name}, built by "
        f"{spec.toolchain.name} {spec.toolchain.build}.",
        "hashes": [_sha256(manifest.engine.digest)],
        "modelCard": {
            "modelParameters": {
                "inputs": [_format(one) for one in manifest.tensors if one.role == "input"],
                "outputs": [_format(one) for one in manifest.tensors if one.role == "output"],
                **({"datasets": datasets} if (datasets := [*_datasets(manifest)]) else {}),
            },
            "quantitativeAnalysis": {"performanceMetrics": [*_metrics(manifest)]},
        },
        "properties": [*_properties(manifest)],
    }
    if signed:
        made["externalReferences"] = [
            {
                "type": "digital-signature",
                "url": attestation_key(manifest),
                "comment": "The key of the signature in the engine's store.",
            }
        ]
    return made


def _sha256(digest: str) -> Json:
    return {"alg": "SHA-256", "content": digest}


def _format(tensor: TensorInfo) -> Json:
    shape = "×".join("dynamic" if size == -1 else str(size) for size in tensor.shape)
    return {"format": f"{tensor.name}: {tensor.dtype} {shape or 'scalar'}"}


def _datasets(manifest: Manifest) -> Iterator[Json]:
    """The data that the numbers depend on, by digest: the store does not hold it."""
    calibration = manifest.spec.precision.calibration
    if calibration is not None:
        yield {
            "type": "dataset",
            "name": "calibration",
            "description": f"{calibration.batches} batches of {calibration.batch_size} samples; "
            f"the sha256 of what decides them is {calibration.data_digest}.",
        }
    if manifest.reference is not None:
        random = manifest.verification.random_data
        yield {
            "type": "dataset",
            "name": "verification",
            "description": ("Seeded random inputs" if random else "Inputs of the recipe")
            + f" and the outputs of the model in FP32; sha256 {manifest.reference.digest}.",
        }


def _metrics(manifest: Manifest) -> Iterator[Json]:
    """The figures of the graph on the CPU, and those of the engine if it has run on its GPU."""
    for where, outputs in (
        ("graph on CPU", manifest.verification.outputs),
        ("engine on GPU", manifest.device_verification.outputs),
    ):
        for one in outputs:
            figures = {
                "cosine to FP32": one.cosine,
                "relative L2 to FP32": one.relative_l2,
                "top-1 agreement with FP32": one.top1_agreement,
                "top-1 accuracy": one.top1_accuracy,
            }
            for name, value in figures.items():
                if value is not None:
                    yield {"type": name, "value": f"{value:g}", "slice": f"{where}: {one.output}"}


def _properties(manifest: Manifest) -> Iterator[Json]:
    spec, build = manifest.spec, manifest.build
    told = {
        "gpu": spec.gpu.label,
        "compute-capability": ", ".join(
            build.compute_capabilities or (spec.gpu.compute_capability,)
        ),
        "precision": spec.precision.name,
        "cuda": spec.toolchain.cuda,
        "os": f"{spec.toolchain.os}/{spec.toolchain.arch}",
        "device-verification": manifest.device_verification.status,
        "builder-driver": manifest.environment.driver or "",
        "builder-python": manifest.environment.python,
    }
    for name, value in told.items():
        if value:
            yield {"name": f"enginefarm:{name}", "value": value}


def _components(manifest: Manifest) -> Iterator[Json]:
    spec = manifest.spec
    yield {
        "type": "machine-learning-model",
        "bom-ref": "source-graph",
        "name": f"{manifest.recipe}, FP32 graph",
        "description": "The model as ONNX in FP32, slimmed; the version is its digest.",
        "version": spec.onnx_digest,
    }
    yield _blob("built-graph", f"{manifest.recipe}, graph as built", manifest.graph.model)
    if manifest.graph.data is not None:
        yield _blob("built-graph-data", f"{manifest.recipe}, weights as built", manifest.graph.data)
    toolchain = spec.toolchain
    runtime = runtime_of(toolchain.name)[1]
    licenses = manifest.environment.licenses
    yield {
        "type": "library",
        "bom-ref": "toolchain",
        "supplier": {"name": "NVIDIA Corporation"},
        "name": runtime.title,
        "version": toolchain.build,
        "description": f"Toolchain {toolchain.name}: it built the engine. "
        + ("Later" if spec.builder.version_compatible else "No other")
        + " builds run it"
        + (" within its major version." if spec.builder.version_compatible else "."),
        **_licenses(next((licenses[one] for one in runtime.packages if one in licenses), "")),
    }
    for role, tool in _tools(manifest):
        yield {
            "type": "application",
            "bom-ref": f"tool-{role}",
            "name": tool.name,
            "version": tool.version,
            "description": f"Used as {role}.",
        }
    for digest in spec.plugins:
        yield {
            "type": "library",
            "bom-ref": f"plugin-{digest}",
            "name": "plugin library",
            "version": digest,
            "hashes": [_sha256(digest)],
        }
    for name, version in sorted(manifest.environment.packages.items()):
        yield {
            "type": "library",
            "bom-ref": f"package-{name}",
            "name": name,
            "version": version,
            "purl": f"pkg:pypi/{name.lower().replace('_', '-')}@{quote(version, safe='')}",
            "description": "Installed where the engine was built.",
            **_licenses(licenses.get(name, "")),
        }


def _licenses(expression: str) -> Json:
    return {"licenses": [{"expression": expression}]} if expression else {}


def _blob(reference: str, name: str, ref: BlobRef) -> Json:
    return {
        "type": "file",
        "bom-ref": reference,
        "name": name,
        "version": ref.digest,
        "hashes": [_sha256(ref.digest)],
    }


def _tools(manifest: Manifest) -> Iterator[tuple[str, ToolUse]]:
    yield "exporter", manifest.spec.exporter
    yield "slimmer", manifest.spec.slimmer
    for number, tool in enumerate(manifest.spec.precision.tools, 1):
        yield f"converter-{number}", tool
