"""The bill of materials, held against CycloneDX's published schema (version 1.6)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from sample_manifest import CALIBRATED, make_manifest, ref

from enginefarm.documents.comparing import OutputComparison
from enginefarm.documents.manifest import Manifest
from enginefarm.documents.spec import ToolUse
from enginefarm.release.bom import bom

VALIDATOR = JsonStrictValidator(SchemaVersion.V1_6)
"""With the schemas that CycloneDX publishes; the library brings them."""


def refused(document: dict[str, Any]) -> str:
    """The first thing that is wrong with a document; empty for a valid one."""
    return str(VALIDATOR.validate_str(json.dumps(document)) or "").partition("\n")[0]


def full(**spec: Any) -> Manifest:
    """With everything that a manifest may have."""
    manifest = make_manifest(engine=b"plan", plugins=("f" * 64,), **spec)
    precision = manifest.spec.precision.model_copy(
        update={
            "tools": (ToolUse(name="enginefarm-qdq", version="3"),),
            "calibration": CALIBRATED,
        }
    )
    return manifest.model_copy(
        update={
            "spec": manifest.spec.model_copy(update={"precision": precision}),
            "reference": ref(b"reference"),
            "graph": manifest.graph.model_copy(update={"data": ref(b"weights")}),
            "environment": manifest.environment.model_copy(
                update={
                    "packages": {"onnx_ir": "0.1.2", "torch": "2.13.0+cpu"},
                    "licenses": {"torch": "BSD-3-Clause AND MIT", "tensorrt": "LicenseRef-Other"},
                }
            ),
            "device_verification": manifest.device_verification.model_copy(
                update={
                    "outputs": (
                        OutputComparison(output="y", cosine=0.999, max_abs=0.1, relative_l2=0.01),
                    )
                }
            ),
        }
    )


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("made", [make_manifest, full])
def test_it_is_valid_by_the_published_schema(made: Any, signed: bool) -> None:
    assert refused(bom(made(), signed=signed, license_="Apache-2.0 OR MIT")) == ""


def test_the_schema_refuses_what_is_wrong() -> None:
    document = bom(make_manifest(), signed=False)
    document["metadata"]["component"]["hashes"][0]["content"] = "no digest"
    assert "no digest" in refused(document)


def test_it_names_what_the_engine_was_made_from() -> None:
    manifest = full()
    document = bom(manifest, signed=True)
    engine = document["metadata"]["component"]
    assert engine["hashes"] == [{"alg": "SHA-256", "content": manifest.engine.digest}]
    assert engine["version"] == manifest.spec_digest
    assert engine["externalReferences"][0]["type"] == "digital-signature"
    card = engine["modelCard"]
    assert card["modelParameters"]["inputs"] == [{"format": "x: float32 dynamic×3"}]
    told = json.dumps(card["modelParameters"]["datasets"])
    assert "c" * 64 in told
    assert ref(b"reference").digest in told
    by_name = {one["name"]: one for one in document["components"]}
    assert by_name["TensorRT"]["version"] == "10.16.1.11"
    assert by_name["onnx_ir"]["purl"] == "pkg:pypi/onnx-ir@0.1.2"
    assert by_name["torch"]["version"] == "2.13.0+cpu"
    assert by_name["torch"]["purl"] == "pkg:pypi/torch@2.13.0%2Bcpu"
    assert by_name["plugin library"]["hashes"][0]["content"] == "f" * 64
    assert by_name["model, weights as built"]["version"] == ref(b"weights").digest
    references = [one["bom-ref"] for one in document["components"]]
    assert len(set(references)) == len(references)


def test_it_has_the_licenses_that_packages_declare_and_that_of_the_model() -> None:
    document = bom(full(), signed=False, license_="CC-BY-4.0")
    by_name = {one["name"]: one for one in document["components"]}
    assert document["metadata"]["component"]["licenses"] == [{"expression": "CC-BY-4.0"}]
    assert by_name["torch"]["licenses"] == [{"expression": "BSD-3-Clause AND MIT"}]
    assert by_name["TensorRT"]["licenses"] == [{"expression": "LicenseRef-Other"}]
    assert "licenses" not in by_name["onnx_ir"], "what is not declared is left out"
    assert "licenses" not in bom(full(), signed=False)["metadata"]["component"]


def test_the_same_engine_has_the_same_document() -> None:
    assert bom(full(), signed=True) == bom(full(), signed=True)
    other = bom(full(salt="other"), signed=True)
    assert other["serialNumber"] != bom(full(), signed=True)["serialNumber"]


def test_an_unsigned_engine_has_no_signature_to_point_to() -> None:
    engine = bom(full(), signed=False)["metadata"]["component"]
    assert "externalReferences" not in engine
