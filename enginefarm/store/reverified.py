"""Replaces the verification figures of an engine, when its data or our method has changed."""

from __future__ import annotations

from enginefarm.documents.manifest import DeviceVerification, GraphVerification, Manifest
from enginefarm.documents.spec import BlobRef, OnnxRef
from enginefarm.errors import SignatureRejected, StoreConflict
from enginefarm.store import layout, signing
from enginefarm.store.engine_store import EngineStore

ATTEMPTS = 5


def write(
    store: EngineStore,
    recipe: str,
    spec_digest: str,
    graph: OnnxRef,
    verification: GraphVerification,
    reference: BlobRef,
) -> Manifest | None:
    """The manifest with these figures, signed again where it was signed; None when the store has
    no engine of that graph. One that two recipes share is its own recipe's to verify.

    What its GPU said was said of the figures before: it is pending again. Figures that miss the
    budget are written too: nobody may pull the engine on its old ones.
    Raises: StoreConflict when others keep writing it.
    """
    key = layout.manifest(spec_digest)
    for _ in range(ATTEMPTS):
        found = store.objects.get(key)
        manifest = None if found is None else store.manifest(spec_digest)
        if found is None or manifest is None or manifest.graph != graph:
            return None
        if manifest.recipe != recipe:
            return manifest
        if manifest.verification.asked == verification.asked:
            return manifest
        again = manifest.model_copy(
            update={
                "verification": verification,
                "reference": reference,
                "device_verification": DeviceVerification(
                    status="pending", reason="it was verified again since it ran on its GPU"
                ),
            }
        )
        if _was_signed(store, manifest):
            _sign(store, again)  # before the manifest: hosts that check must find it signed
        try:
            store.write_document(key, again.canonical_json(), if_etag=found[1])
        except StoreConflict:
            continue
        return again
    raise StoreConflict(f"manifest {spec_digest[:12]}: other processes keep writing it")


def _was_signed(store: EngineStore, manifest: Manifest) -> bool:
    """Whether the engine as it was is one that this farm trusts: other figures make no other
    bytes trusted."""
    trusted = signing.trust()
    found = store.objects.get(signing.attestation_key(manifest))
    if trusted is None or found is None:
        return False
    try:
        trusted.require(manifest, found[0])
    except SignatureRejected:
        return False
    return True


def _sign(store: EngineStore, manifest: Manifest) -> None:
    signer = signing.signer()
    if signer is not None:
        signed = Manifest.read(manifest.canonical_json())
        envelope = signer.attest(signed).canonical_json()
        store.objects.put(signing.attestation_key(signed), envelope)
