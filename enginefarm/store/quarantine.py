"""What becomes of an engine after it was run on its GPU.

Passed: the manifest says so from then on. Failed: the engine leaves the store's tables for
`quarantine/<spec_digest>.json`, with its log, and nobody can find it as a good one again.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from enginefarm.documents.manifest import DeviceVerification, Manifest
from enginefarm.documents.spec import BlobRef
from enginefarm.errors import StoreConflict, StoreMissing
from enginefarm.schema import Digest, Frozen
from enginefarm.store import layout
from enginefarm.store.engine_store import EngineStore

QUARANTINE = "quarantine/"


class Quarantined(Frozen):
    """An engine that failed on its GPU: never served, kept to be looked into."""

    spec_digest: Digest
    manifest: Manifest
    verification: DeviceVerification
    log: BlobRef
    quarantined_at: datetime


def record(
    store: EngineStore, manifest: Manifest, verification: DeviceVerification, log: Path
) -> Manifest:
    """Writes the outcome of a verification on the device; gives the manifest as it is now.

    Raises: StoreMissing when the manifest is gone, StoreConflict when it keeps changing.
    """
    judged = manifest.model_copy(update={"device_verification": verification})
    if verification.status == "failed":
        quarantine(store, judged, log)
        return judged
    key = layout.manifest(manifest.spec_digest)
    for _ in range(5):
        found = store.read_document(key)
        if found is None:
            raise StoreMissing(f"manifest {manifest.spec_digest[:12]}: gone from the store")
        data, etag = found
        current = Manifest.model_validate_json(data)
        judged = current.model_copy(update={"device_verification": verification})
        try:
            store.write_document(key, judged.canonical_json(), if_etag=etag)
        except StoreConflict:
            continue
        return judged
    raise StoreConflict(f"manifest {manifest.spec_digest[:12]}: others keep writing it")


def quarantine(store: EngineStore, manifest: Manifest, log: Path) -> Quarantined:
    """Out of the tables, then out of the index: a reader sees the engine or sees none."""
    entry = Quarantined(
        spec_digest=manifest.spec_digest,
        manifest=manifest,
        verification=manifest.device_verification,
        log=store.put_blob(log),
        quarantined_at=datetime.now(UTC),
    )
    store.put_object(f"{QUARANTINE}{manifest.spec_digest}.json", entry.canonical_json())
    store.delete_object(
        layout.index(
            layout.IndexEntry(
                manifest.recipe, manifest.gpu, manifest.precision, manifest.spec_digest
            )
        )
    )
    store.delete_object(layout.manifest(manifest.spec_digest))
    return entry


def quarantined(store: EngineStore, spec_digest: str) -> Quarantined | None:
    """The record of a failed engine; None for a spec that never failed on its GPU."""
    found = store.read_document(f"{QUARANTINE}{spec_digest}.json")
    return None if found is None else Quarantined.model_validate_json(found[0])
