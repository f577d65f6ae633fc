"""Records the result of running an engine on its GPU.

Passed: the manifest says so from then on. Failed: the engine leaves the store's tables for
`quarantine/<spec_digest>.json`, with its log, and nobody can find it as a good one again.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from enginefarm.documents.manifest import DeviceVerification, Manifest
from enginefarm.documents.spec import BlobRef
from enginefarm.errors import CorruptBlob, StoreConflict, StoreMissing
from enginefarm.schema import Digest, Frozen, Moment
from enginefarm.store import layout
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.reading import parsed, read

QUARANTINE = "quarantine/"
LET_GO = "restore it from a copy; or delete it, and the engine can be built again"
"""Nothing removes such a record by itself: it says that an engine is wrong."""


class QuarantinedEngine(Frozen):
    """An engine that failed on its GPU: never served, kept to be looked into."""

    spec_digest: Digest
    manifest: Manifest
    verification: DeviceVerification
    log: BlobRef
    quarantined_at: Moment


def record(
    store: EngineStore, manifest: Manifest, verification: DeviceVerification, log: Path
) -> Manifest:
    """Writes the outcome of a verification on the device; returns the manifest as it is now.

    Raises: StoreMissing when the manifest is gone, StoreConflict when it keeps changing.
    """
    judged = _judged(store, manifest, verification)
    if verification.status == "failed":
        quarantine(store, judged, log)
    return judged


def _judged(store: EngineStore, manifest: Manifest, verification: DeviceVerification) -> Manifest:
    key = layout.manifest(manifest.spec_digest)
    for _ in range(5):
        found = store.objects.get(key)
        if found is None and verification.status == "failed":  # by who died after that
            return manifest.model_copy(update={"device_verification": verification})
        if found is None:
            raise StoreMissing(f"manifest {manifest.spec_digest[:12]}: it is gone from the store")
        data, etag = found
        current = parsed(key, data, Manifest)
        judged = current.model_copy(update={"device_verification": verification})
        try:
            store.write_document(key, judged.canonical_json(), if_etag=etag)
        except StoreConflict:
            continue
        return judged
    raise StoreConflict(f"manifest {manifest.spec_digest[:12]}: other processes keep writing it")


def quarantine(store: EngineStore, manifest: Manifest, log: Path) -> QuarantinedEngine:
    """Moves a failed engine into quarantine: a reader sees either the engine or nothing.

    The manifest says first, in one write, that it failed: a process that dies after that leaves an
    engine that nobody pulls, and that the next build or fsck withdraws.
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
    """Takes an engine out of the index and the manifests; its blobs stay for gc."""
    store.objects.delete(layout.index(layout.entry_of(manifest)))
    store.objects.delete(layout.manifest(manifest.spec_digest))


def quarantined(store: EngineStore, spec_digest: str) -> QuarantinedEngine | None:
    """The record of a failed engine; None for a spec that never failed on its GPU.

    Raises: CorruptBlob, also for the record of another engine: it must not withdraw this one.
    """
    key = f"{QUARANTINE}{spec_digest}.json"
    entry = read(store.objects, key, QuarantinedEngine, LET_GO)
    if entry is not None and {entry.spec_digest, entry.manifest.spec_digest} != {spec_digest}:
        raise CorruptBlob(f"store: {key} holds the record of another engine", fix=LET_GO)
    return entry
