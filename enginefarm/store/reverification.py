"""Replaces the verification figures of an engine after its data or our method changed."""

from __future__ import annotations

from enginefarm.documents.manifest import DeviceVerification, GraphVerification, Manifest
from enginefarm.documents.spec import BlobRef, OnnxRef
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.statements import signing_policy


def write(
    store: EngineStore,
    recipe: str,
    spec_digest: str,
    graph: OnnxRef,
    verification: GraphVerification,
    reference: BlobRef,
) -> Manifest | None:
    """Writes the figures into the manifest and returns it, signed again if a key that this process
    trusts had signed it; None when the store has no engine of that graph. The manifest of another
    recipe's engine is returned unchanged: that recipe verifies it.

    The verification on the GPU becomes pending, because it used the old figures. Figures that miss
    the budget are written too, so that nobody pulls the engine on its old ones.
    Raises: StoreConflict when other processes keep writing the manifest.
    """
    policy = signing_policy()

    def again(manifest: Manifest) -> Manifest:
        ours = (manifest.graph, manifest.recipe) == (graph, recipe)
        if not ours or manifest.verification.asked == verification.asked:
            return manifest
        changed = manifest.model_copy(
            update={
                "verification": verification,
                "reference": reference,
                "device_verification": DeviceVerification(
                    status="pending", reason="its figures have changed since it ran on its GPU"
                ),
            }
        )
        # New figures must not make an untrusted engine trusted.
        if policy is not None and policy.signed(store, manifest):
            # Before the manifest: hosts that check must find it signed.
            store.attest(Manifest.read(changed.canonical_json()), policy.signer)
        return changed

    written = store.rewrite(spec_digest, again)
    return written if written is not None and written.graph == graph else None
