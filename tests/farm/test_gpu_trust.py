"""Whose plans a GPU worker runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from sample_manifest import make_manifest

from enginefarm.errors import SignatureRejected
from enginefarm.store import signing
from enginefarm.store.engine_store import EngineStore
from tasks import device

ENGINE, GRAPH, REFERENCE = b"engine", b"graph", b"reference"


class Ran(Exception):
    """The plan was about to run."""


def runs(*_: object, **__: object) -> None:
    raise Ran


@pytest.mark.parametrize("has", ["ENGINEFARM_SIGNING_KEY", "ENGINEFARM_TRUST", "neither"])
def test_a_worker_with_keys_runs_no_plan_that_none_of_them_signed(
    store_environment: EngineStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has: str
) -> None:
    """A plan is code, and the worker's user can read the signing key."""
    public, _ = signing.generate(key := tmp_path / "farm.pem")
    if has != "neither":
        monkeypatch.setenv(has, str(key if has == "ENGINEFARM_SIGNING_KEY" else public))
    manifest = make_manifest(engine=ENGINE, graph=GRAPH)
    manifest = manifest.model_copy(update={"reference": store_environment.put_bytes(REFERENCE)})
    for data in (ENGINE, GRAPH):
        store_environment.put_bytes(data)
    store_environment.publish(manifest)
    monkeypatch.setattr(device, "check_device", lambda *_, **__: None)
    monkeypatch.setattr(device, "verify_on_device", runs)
    with pytest.raises(Ran if has == "neither" else SignatureRejected):
        device.verify_on_gpu.fn(manifest.spec_digest, None, ())
    monkeypatch.setenv("ENGINEFARM_SIGNING_KEY", str(key))
    signer = signing.signer()
    assert signer is not None
    written = store_environment.manifest(manifest.spec_digest)
    assert written is not None
    envelope = signer.attest(written).canonical_json()
    store_environment.objects.put(signing.attestation_key(written), envelope)
    with pytest.raises(Ran):
        device.verify_on_gpu.fn(manifest.spec_digest, None, ())
