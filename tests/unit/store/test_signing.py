from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from sample_manifest import make_manifest

from enginefarm.documents.manifest import DeviceVerification, Manifest
from enginefarm.errors import SignatureRejected
from enginefarm.store import signing
from enginefarm.store.provenance import statement
from enginefarm.store.signing import Signer, Trust


def as_read(manifest: Manifest) -> Manifest:
    return Manifest.model_validate_json(manifest.canonical_json())


MANIFEST = as_read(make_manifest())


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Signer, Trust]:
    public, _ = signing.generate(tmp_path / "farm.pem")
    signer = signing.signer({"ENGINEFARM_SIGNING_KEY": str(tmp_path / "farm.pem")})
    trust = signing.trust({"ENGINEFARM_TRUST": str(public)})
    assert signer is not None
    assert trust is not None
    return signer, trust


def test_what_the_farm_signed_is_trusted(keys: tuple[Signer, Trust]) -> None:
    signer, trust = keys
    envelope = signer.attest(MANIFEST).canonical_json()
    assert trust.require(MANIFEST, envelope) == signer.keyid


def test_the_signature_outlives_verification_on_the_device(keys: tuple[Signer, Trust]) -> None:
    signer, trust = keys
    envelope = signer.attest(MANIFEST).canonical_json()
    verified = DeviceVerification(status="passed", gpu="t4")
    later = as_read(MANIFEST.model_copy(update={"device_verification": verified}))
    assert trust.require(later, envelope)


@pytest.mark.parametrize(
    "other",
    [
        make_manifest(engine=b"another engine"),
        make_manifest(recipe="another-recipe"),
        make_manifest(salt="another spec"),
        make_manifest(over_budget=("cosine",)),
        make_manifest(minutes=1),
    ],
)
def test_a_signature_of_another_manifest_is_refused(
    keys: tuple[Signer, Trust], other: Manifest
) -> None:
    signer, trust = keys
    with pytest.raises(SignatureRejected, match="another manifest"):
        trust.require(MANIFEST, signer.attest(as_read(other)).canonical_json())


def test_unsigned_is_refused(keys: tuple[Signer, Trust]) -> None:
    with pytest.raises(SignatureRejected, match="not signed") as caught:
        keys[1].require(MANIFEST, None)
    assert caught.value.exit_code == 51


def test_another_farms_key_is_refused(keys: tuple[Signer, Trust], tmp_path: Path) -> None:
    signing.generate(tmp_path / "other.pem")
    other = signing.signer({"ENGINEFARM_SIGNING_KEY": str(tmp_path / "other.pem")})
    assert other is not None
    with pytest.raises(SignatureRejected, match=r"signed by .* the trusted keys are"):
        keys[1].require(MANIFEST, other.attest(MANIFEST).canonical_json())


def test_a_borrowed_key_id_does_not_help(keys: tuple[Signer, Trust], tmp_path: Path) -> None:
    signing.generate(tmp_path / "other.pem")
    other = signing.signer({"ENGINEFARM_SIGNING_KEY": str(tmp_path / "other.pem")})
    assert other is not None
    forged = Signer(keyid=keys[0].keyid, sign=other.sign)
    with pytest.raises(SignatureRejected):
        keys[1].require(MANIFEST, forged.attest(MANIFEST).canonical_json())


def test_every_changed_byte_of_an_envelope_is_refused(keys: tuple[Signer, Trust]) -> None:
    signer, trust = keys
    envelope = bytearray(signer.attest(MANIFEST).canonical_json())
    for position in range(0, len(envelope), 37):
        damaged = bytearray(envelope)
        damaged[position] ^= 1
        with pytest.raises(SignatureRejected):
            trust.require(MANIFEST, bytes(damaged))


def test_old_and_new_keys_are_trusted_side_by_side(tmp_path: Path) -> None:
    folder = tmp_path / "trusted"
    folder.mkdir()
    signers: list[Signer] = []
    for name in ("old", "new"):
        public, _ = signing.generate(tmp_path / f"{name}.pem")
        public.rename(folder / public.name)
        signer = signing.signer({"ENGINEFARM_SIGNING_KEY": str(tmp_path / f"{name}.pem")})
        assert signer is not None
        signers.append(signer)
    trust = signing.trust({"ENGINEFARM_TRUST": str(folder)})
    assert trust is not None
    for signer in signers:
        assert trust.require(MANIFEST, signer.attest(MANIFEST).canonical_json()) == signer.keyid


def test_a_host_that_means_to_check_never_falls_back(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("")
    for value in (str(tmp_path / "empty.pem"), str(tmp_path / "missing.pem"), str(tmp_path)):
        with pytest.raises(SignatureRejected):
            signing.trust({"ENGINEFARM_TRUST": value})
    assert signing.trust({}) is None


def test_the_private_key_is_the_users_alone_and_is_never_printed(tmp_path: Path) -> None:
    path = tmp_path / "farm.pem"
    signing.generate(path)
    assert path.stat().st_mode & 0o077 == 0
    with pytest.raises(SignatureRejected, match="already"):
        signing.generate(path)
    path.write_text("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n")
    with pytest.raises(SignatureRejected) as caught:
        signing.signer({"ENGINEFARM_SIGNING_KEY": str(path)})
    assert "c2VjcmV0" not in str(caught.value)


def test_the_statement_is_in_toto_and_slsa(keys: tuple[Signer, Trust]) -> None:
    envelope = keys[0].attest(MANIFEST)
    said = json.loads(base64.b64decode(envelope.payload))
    assert said == statement(MANIFEST)
    assert said["_type"] == "https://in-toto.io/Statement/v1"
    assert said["predicateType"] == "https://slsa.dev/provenance/v1"
    assert said["subject"][0]["digest"]["sha256"] == MANIFEST.engine.digest
    definition = said["predicate"]["buildDefinition"]
    assert {one["name"] for one in definition["resolvedDependencies"]} == {"onnx", "graph"}
    assert definition["internalParameters"]["toolchain"]["build"] == "10.16.1.11"


def test_what_is_signed_is_dsse_s_own_example() -> None:
    # Source: DSSE protocol v1.0.2, "PAE".
    said = signing.pre_authentication("http://example.com/HelloWorld", b"hello world")
    assert said == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
