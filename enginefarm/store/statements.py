"""Signed statements other than those about manifests: what a builder recorded, which engine a name
stands for, where a channel points, and what became of an engine on its GPU.

An engine's own signature says what was built. It does not say that the engine may be served under
another recipe's name, that a channel points at it, or that it was right on its GPU. Anybody who
can write to the store could claim that, so such statements are signed too.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import TypeVar

from enginefarm.documents.manifest import DeviceVerification, Manifest
from enginefarm.documents.signed import Signature, SignedDocument
from enginefarm.errors import SignatureRejected
from enginefarm.schema import Digest, Name, canonical_json
from enginefarm.store import signing
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.provenance import signed_digest
from enginefarm.store.reading import parsed
from enginefarm.store.signing import Signer, Trust

UNSIGNED_RESULT = "no trusted key signed that it passed on its GPU"

Document = TypeVar("Document", bound=SignedDocument)


class Alias(SignedDocument):
    """States that a recipe's name also stands for an engine of another recipe."""

    schema_version: int = 1
    recipe: Name
    spec_digest: Digest
    manifest: Digest


class DeviceResult(SignedDocument):
    """States what became of an engine on its GPU.

    manifest: the engine's, with the budget and the reference of its verification. result: digest of
    its DeviceVerification without signatures, which the manifest carries.
    """

    schema_version: int = 1
    manifest: Digest
    result: Digest


def sign(document: Document, signer: Signer) -> Document:
    """The document with this signature instead of any earlier ones."""
    sig = base64.b64encode(signer.sign(_signed_bytes(document))).decode()
    signature = Signature(keyid=signer.keyid, sig=sig)
    return document.model_copy(update={"signatures": (signature,)})


def signed_by(document: SignedDocument, trust: Trust) -> str | None:
    """The id of the trusted key that signed exactly this document, or None."""
    try:
        return trust.signer_of(document.signatures, _signed_bytes(document))
    except ValueError:  # a signature that is not even base64
        return None


def require(document: SignedDocument, trust: Trust, name: str) -> str:
    """signed_by(), or SignatureRejected. name: the document's name in errors."""
    keyid = signed_by(document, trust)
    if keyid is not None:
        return keyid
    by = ", ".join(one.keyid[:12] for one in document.signatures)
    raise SignatureRejected(
        f"signature: {name} is refused",
        why=f"it is signed by {by}, and the trusted keys are {trust}" if by else "it is not signed",
        fix="set ENGINEFARM_SIGNING_KEY where it is written, and write it again; or correct "
        "ENGINEFARM_TRUST",
    )


def _signed_bytes(document: SignedDocument) -> bytes:
    kind = f"application/vnd.enginefarm.{type(document).__name__.lower()}+json"
    body = document.model_copy(update={"signatures": ()}).canonical_json()
    return signing.pre_authentication(kind, body)


def alias_key(recipe: str, spec_digest: str) -> str:
    return f"attestations/{spec_digest}/alias-{recipe}.json"


def alias_of(recipe: str, manifest: Manifest) -> Alias:
    return Alias(recipe=recipe, spec_digest=manifest.spec_digest, manifest=signed_digest(manifest))


def name_it(store: EngineStore, recipe: str, manifest: Manifest, signer: Signer) -> None:
    """Signs that a recipe's name stands for the engine. Its own recipe needs no statement."""
    if recipe != manifest.recipe:
        alias = sign(alias_of(recipe, manifest), signer)
        store.objects.put(alias_key(recipe, manifest.spec_digest), alias.canonical_json())


def read_alias(store: EngineStore, recipe: str, manifest: Manifest) -> bytes | None:
    """The statement in the store; None if it does not exist or is not needed."""
    if recipe == manifest.recipe:
        return None
    found = store.objects.get(alias_key(recipe, manifest.spec_digest))
    return found[0] if found else None


def is_named(store: EngineStore, recipe: str, manifest: Manifest) -> bool:
    """False for a signed engine of another recipe if this recipe's name for it is not signed yet:
    hosts that check signatures would refuse it. A builder with the signing key signs the name."""
    if recipe == manifest.recipe or read_alias(store, recipe, manifest) is not None:
        return True
    return store.attestation(manifest) is None


def require_name(recipe: str, manifest: Manifest, alias: bytes | None, trust: Trust) -> None:
    """Raises: SignatureRejected if no trusted key signed that the name stands for the engine."""
    if recipe == manifest.recipe:
        return
    name = f"{manifest.recipe} {manifest.spec.label} under the name {recipe}"
    if alias is None:
        raise SignatureRejected(
            f"signature: {name} is refused",
            why="no signed statement says that the name stands for this engine",
            fix=f"enginefarm sign --vouch {recipe}, on a machine that has the signing key",
        )
    statement = parsed(alias_key(recipe, manifest.spec_digest), alias, Alias)
    require(statement, trust, name)
    if statement.model_copy(update={"signatures": ()}) != alias_of(recipe, manifest):
        raise SignatureRejected(
            f"signature: {name} is refused", why="the statement is about another engine or name"
        )


def device_result(manifest: Manifest) -> DeviceResult:
    """What the manifest says about its engine on its GPU, and its signatures."""
    verification = manifest.device_verification
    # Only fields that its JSON has: one that a later version adds breaks no earlier signature.
    said = verification.model_dump(mode="json", exclude={"signatures"}, exclude_unset=True)
    return DeviceResult(
        manifest=signed_digest(manifest),
        result=hashlib.sha256(canonical_json(said)).hexdigest(),
        signatures=verification.signatures,
    )


def sign_device_result(manifest: Manifest, signer: Signer) -> Manifest:
    """The manifest, whose result on the GPU this process stands for."""
    signatures = sign(device_result(Manifest.read(manifest.canonical_json())), signer).signatures
    signed = manifest.device_verification.model_copy(update={"signatures": signatures})
    return manifest.model_copy(update={"device_verification": signed})


def trusted_on_device(manifest: Manifest, trust: Trust | None) -> Manifest:
    """The manifest as a host may believe it: if it says that the engine passed on its GPU and no
    trusted key signed that, the engine has not been verified there.

    A failure needs no signature: it never makes an engine eligible.
    """
    passed = manifest.device_verification.status == "passed"
    if trust is None or not passed or signed_by(device_result(manifest), trust):
        return manifest
    pending = DeviceVerification(status="pending", reason=UNSIGNED_RESULT)
    return manifest.model_copy(update={"device_verification": pending})


def require_manifest(store: EngineStore, manifest: Manifest, trust: Trust) -> str:
    """The id of the trusted key that signed the manifest. Raises: SignatureRejected."""
    return trust.require(manifest, store.attestation(manifest))


@dataclass(frozen=True)
class SigningPolicy:
    """How a process that signs treats what others recorded: it accepts only what a trusted builder
    or its own key signed."""

    signer: Signer
    trust: Trust

    def trusts(self, document: SignedDocument) -> bool:
        return signed_by(document, self.trust) is not None

    def signed(self, store: EngineStore, manifest: Manifest) -> bool:
        """Whether a trusted builder signed the engine's manifest."""
        try:
            require_manifest(store, manifest, self.trust)
        except SignatureRejected:
            return False
        return True

    def speaks_for(self, store: EngineStore, manifest: Manifest) -> bool:
        """Whether a trusted builder's record says that it built this plan for this spec."""
        spec = manifest.spec
        alone = spec.model_copy(update={"compute_capabilities": ()})
        for key in {spec.plan_key, alone.plan_key}:
            record = store.stage(f"plan-{spec.precision.name}", key)
            if record is not None and record.outputs.get("plan") == manifest.engine:
                return self.trusts(record)
        return False

    def sign(self, document: Document) -> Document:
        return sign(document, self.signer)


def signing_policy() -> SigningPolicy | None:
    """None for a process that signs nothing. Raises: SignatureRejected for unusable keys."""
    signer = signing.signer()
    if signer is None:
        return None
    trusted = signing.trust()
    keys = {**(trusted.keys if trusted else {}), signer.keyid: signer.public}
    return SigningPolicy(signer, Trust(keys))
