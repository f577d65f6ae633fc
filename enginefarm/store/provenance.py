"""Provenance: an in-toto statement with a SLSA v1 predicate about one manifest.

The subject is the engine. The byproduct `manifest` is the digest of the manifest without the
verification on the device, which is written after the build. A signature protects everything else.
Sources: in-toto Attestation Framework v1, SLSA provenance v1.
"""

from __future__ import annotations

import hashlib
from typing import Any

from enginefarm.documents.manifest import Manifest
from enginefarm.schema import canonical_json

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:enginefarm:build:v1"
WRITTEN_LATER = {"device_verification"}


def signed_digest(manifest: Manifest) -> str:
    """sha256 of the manifest without the fields that are written after the build.

    Only fields that the manifest's JSON has are hashed, so that fields that later versions add do
    not break earlier signatures.
    """
    body = manifest.model_dump(mode="json", exclude=WRITTEN_LATER, exclude_unset=True)
    return hashlib.sha256(canonical_json(body)).hexdigest()


def statement(manifest: Manifest) -> dict[str, Any]:
    spec = manifest.spec
    return {
        "_type": STATEMENT_TYPE,
        "subject": [
            {
                "name": f"{manifest.recipe}/{manifest.gpu}/{manifest.precision}",
                "digest": {"sha256": manifest.engine.digest},
            }
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "recipe": manifest.recipe,
                    "gpu": spec.gpu.model_dump(mode="json"),
                    "precision": spec.precision.model_dump(mode="json"),
                    "profiles": [profile.model_dump(mode="json") for profile in spec.profiles],
                    "builder": spec.builder.model_dump(mode="json"),
                },
                "internalParameters": {
                    "spec": manifest.spec_digest,
                    "toolchain": spec.toolchain.model_dump(mode="json"),
                    "exporter": spec.exporter.model_dump(mode="json"),
                    "slimmer": spec.slimmer.model_dump(mode="json"),
                },
                "resolvedDependencies": _dependencies(manifest),
            },
            "runDetails": {
                "builder": {
                    "id": f"urn:enginefarm:host:{manifest.environment.host}",
                    "version": dict(manifest.environment.packages),
                },
                "metadata": {
                    "invocationId": manifest.spec_digest,
                    "finishedOn": manifest.created_at.isoformat(),
                },
                "byproducts": [{"name": "manifest", "digest": {"sha256": signed_digest(manifest)}}],
            },
        },
    }


def is_about(claim: Any, manifest: Manifest) -> bool:
    """Whether a statement is about this manifest: its engine, its spec and the rest of it."""
    try:
        predicate = claim["predicate"]
        return (
            claim["_type"] == STATEMENT_TYPE
            and claim["predicateType"] == PREDICATE_TYPE
            and [one["digest"]["sha256"] for one in claim["subject"]] == [manifest.engine.digest]
            and predicate["buildDefinition"]["buildType"] == BUILD_TYPE
            and predicate["runDetails"]["metadata"]["invocationId"] == manifest.spec_digest
            and predicate["runDetails"]["byproducts"]
            == [{"name": "manifest", "digest": {"sha256": signed_digest(manifest)}}]
        )
    except (KeyError, TypeError, IndexError):
        return False


def _dependencies(manifest: Manifest) -> list[dict[str, Any]]:
    spec = manifest.spec
    named = [("onnx", spec.onnx_digest), ("graph", manifest.graph.digest)]
    if spec.precision.calibration is not None:
        named.append(("calibration", spec.precision.calibration.data_digest))
    named += [("plugin", digest) for digest in spec.plugins]
    return [{"name": name, "digest": {"sha256": digest}} for name, digest in named]
