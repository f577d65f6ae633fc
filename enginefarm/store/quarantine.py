"""Records the result of the verification of an engine on its GPU.

A result is written into the manifest. An engine that failed leaves the index and the manifests for
`quarantine/<spec_digest>.json`, with its log, so that nobody can pull it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from enginefarm.documents.manifest import DeviceVerification, Manifest
from enginefarm.documents.spec import BlobRef
from enginefarm.errors import CorruptBlob, StoreConflict, StoreMissing
from enginefarm.schema import Digest, Frozen, Moment
from enginefarm.store import layout, signing, statements
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.reading import read

QUARANTINE = "quarantine/"
RELEASE = "restore it from a copy; or delete it, and the engine can be built again"
"""The farm never removes such a record, because it says that an engine is wrong."""


class QuarantinedEngine(Frozen):
    """An engine that failed on its GPU. It is never served, but kept for analysis."""

    spec_digest: Digest
    manifest: Manifest
    verification: DeviceVerification
    log: BlobRef
    quarantined_at: Moment


def record(
    store: EngineStore, manifest: Manifest, verification: DeviceVerification, log: Path
) -> Manifest:
    """Writes the outcome of a verification on the device; returns the new manifest.

    manifest: as it was when the engine ran. A process with a signing key signs the outcome: hosts
    with trust keys believe no other that says "passed".
    Raises: StoreMissing when the manifest is gone; StoreConflict when it names another engine,
    reference or figures now, or keeps changing.
    """
    key = signing.signer()
    outcome = {"device_verification": verification}

    def judged(one: Manifest) -> Manifest:
        said = one.model_copy(update=outcome)
        if said != manifest.model_copy(update=outcome):
            raise StoreConflict(
                f"manifest {manifest.spec_digest[:12]} was replaced while its engine ran",
                why="the result is about the engine, reference and figures that it named before",
                fix="run benchmark-engine again",
            )
        return said if key is None else statements.sign_device_result(said, key)

    written = store.rewrite(manifest.spec_digest, judged)
    if verification.status == "failed":
        written = written or judged(manifest)  # it was withdrawn before
        quarantine(store, written, log)
    if written is None:
        raise StoreMissing(
            f"manifest {manifest.spec_digest[:12]} was removed from the store meanwhile"
        )
    return written


def quarantine(store: EngineStore, manifest: Manifest, log: Path) -> QuarantinedEngine:
    """Moves a failed engine into quarantine. A reader sees either the engine or nothing.

    The manifest already says that the engine failed. If this process dies before the end, nobody
    can pull the engine, and the next build or fsck withdraws it.
    """
    entry = QuarantinedEngine(
        spec_digest=manifest.spec_digest,
        manifest=manifest,
        verification=manifest.device_verification,
        log=store.put_blob(log),
        quarantined_at=datetime.now(UTC),
    )
    store.objects.put(f"{QUARANTINE}{manifest.spec_digest}.json", entry.canonical_json())
    withdraw(store, manifest)
    return entry


def withdraw(store: EngineStore, manifest: Manifest) -> None:
    """Removes an engine from the index and the manifests. gc removes its blobs later."""
    store.objects.delete(layout.index(layout.entry_of(manifest)))
    store.objects.delete(layout.manifest(manifest.spec_digest))


def quarantined(store: EngineStore, spec_digest: str) -> QuarantinedEngine | None:
    """The record of a failed engine; None for a spec that never failed on its GPU.

    Raises: CorruptBlob, also for the record of another engine, which must not withdraw this one.
    """
    key = f"{QUARANTINE}{spec_digest}.json"
    entry = read(store.objects, key, QuarantinedEngine, RELEASE)
    if entry is not None and {entry.spec_digest, entry.manifest.spec_digest} != {spec_digest}:
        raise CorruptBlob(f"store: {key} holds the record of another engine", fix=RELEASE)
    return entry
