"""EngineStore: blobs, specs, manifests, stages and documents in one bucket."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from enginefarm.documents.manifest import Manifest
from enginefarm.documents.spec import BlobRef, BuildSpec
from enginefarm.documents.stage import StageRecord
from enginefarm.errors import CorruptBlob, StoreConflict
from enginefarm.schema import Frozen
from enginefarm.store import blobs, layout, signing
from enginefarm.store.layout import IndexEntry
from enginefarm.store.s3 import ObjectInfo, ObjectStore
from enginefarm.store.sources import BlobSource

Model = TypeVar("Model", bound=Frozen)

READERS = 8
BATCH = 64


class EngineStore:
    """Raises, from every method: StoreUnavailable, StoreDenied, StoreMissing (bucket)."""

    def __init__(self, objects: ObjectStore, url: str) -> None:
        self.objects = objects
        self.url = url

    # Blobs

    def put_blob(self, path: Path) -> BlobRef:
        """Uploads a file unless its bytes are there already. Reports progress "upload"."""
        return blobs.put_file(self.objects, path)

    def put_bytes(self, data: bytes) -> BlobRef:
        return blobs.put_bytes(self.objects, data)

    def has_blob(self, ref: BlobRef) -> bool:
        """Whether the blob is there, as far as the server's metadata tells."""
        return blobs.is_intact(self.objects.head(layout.blob(ref)), ref)

    def blob(self, digest: str) -> BlobRef:
        """The blob of this digest, with its size as the server tells it.

        Raises: StoreMissing.
        """
        info = self.objects.head(layout.blob_of(digest))
        if info is None:
            raise blobs.missing(BlobRef(digest=digest, size_bytes=0))
        return BlobRef(digest=digest, size_bytes=info.size_bytes)

    def fetch_blob(self, ref: BlobRef, dest: Path) -> Path:
        """Downloads to `dest`, whole or not at all. Reports progress "download".

        Raises: CorruptBlob, StoreMissing, DiskFull.
        """
        return blobs.fetch_file(BlobSource(self.objects, ref), ref, dest)

    def read_bytes(self, ref: BlobRef, limit_bytes: int = 64 << 20) -> bytes:
        """A small blob, digest checked (CorruptBlob)."""
        return blobs.read_bytes(self.objects, ref, limit_bytes)

    # Manifests

    def publish(self, manifest: Manifest) -> bool:
        """Says that an engine is complete. False when somebody had said so already.

        The index entry is written second, and by losers too: who died between the two
        writes is healed by the next one. Signed first, where ENGINEFARM_SIGNING_KEY is set.
        Raises: StoreMissing when the engine's bytes are not in the store.
        """
        if manifest.spec.digest != manifest.spec_digest:
            raise CorruptBlob("manifest: spec_digest is not the digest of its spec")
        for ref in (manifest.engine, manifest.graph.model):
            if not blobs.present(self.objects, ref):
                raise blobs.missing(ref)
        body = manifest.canonical_json()
        signer = signing.signer()
        if signer is not None:  # before the manifest: hosts that check must find it signed
            written = Manifest.model_validate_json(body)
            envelope = signer.attest(written).canonical_json()
            self.objects.put(signing.attestation_key(written), envelope)
        key = layout.manifest(manifest.spec_digest)
        created = self.objects.put_if_absent(key, body)
        entry = IndexEntry(manifest.recipe, manifest.gpu, manifest.precision, manifest.spec_digest)
        self.objects.put(layout.index(entry), b"")
        if not self.has_blob(manifest.engine):  # gc was between its second look and the delete
            self.objects.delete(layout.index(entry))
            self.objects.delete(key)
            raise blobs.missing(manifest.engine)
        return created is not None

    def index_for(self, recipe: str, manifest: Manifest) -> None:
        """Lists an engine under one more recipe: two that ask for one spec share it."""
        if recipe != manifest.recipe:
            entry = IndexEntry(recipe, manifest.gpu, manifest.precision, manifest.spec_digest)
            self.objects.put(layout.index(entry), b"")

    def manifest(self, spec_digest: str) -> Manifest | None:
        """The manifest of that spec; None when it is not complete.

        Raises: CorruptBlob when its body is not a manifest, or not that spec's.
        """
        manifest = self._read(layout.manifest(spec_digest), Manifest)
        if manifest is None:
            return None
        if manifest.spec_digest != spec_digest or manifest.spec.digest != spec_digest:
            raise CorruptBlob(
                f"store: manifest {spec_digest[:12]} holds another spec "
                f"({manifest.spec.digest[:12]})",
                fix=f"delete {layout.manifest(spec_digest)} and build again",
            )
        return manifest

    def digests(self, beginning: str) -> Iterator[str]:
        """Spec digests of complete engines that begin so."""
        for info in self.objects.list(layout.MANIFESTS + beginning):
            yield info.key.removeprefix(layout.MANIFESTS).removesuffix(".json")

    def index(
        self, recipe: str | None = None, gpu: str | None = None, precision: str | None = None
    ) -> Iterator[IndexEntry]:
        """What is complete, by one paginated listing, without reading a manifest."""
        for info in self.objects.list(layout.index_prefix(recipe, gpu)):
            entry = layout.parse_index(info.key)
            if (
                entry is not None
                and gpu in (None, entry.gpu)
                and precision in (None, entry.precision)
            ):
                yield entry

    def manifests(
        self, recipe: str | None = None, gpu: str | None = None, precision: str | None = None
    ) -> Iterator[Manifest]:
        """Manifests that pass the filters, in the index's order, read several at a time."""
        digests = (entry.spec_digest for entry in self.index(recipe, gpu, precision))
        with ThreadPoolExecutor(READERS) as pool:
            while batch := list(islice(digests, BATCH)):
                yield from (found for found in pool.map(self.manifest, batch) if found)

    def complete(self, recipe: str) -> frozenset[str]:
        """Spec digests of a recipe that are complete: one paginated listing, no reads."""
        return frozenset(entry.spec_digest for entry in self.index(recipe))

    def recipes(self) -> tuple[str, ...]:
        return tuple(self.objects.folders(layout.INDEX))

    # Specs and stages

    def put_spec(self, spec: BuildSpec) -> str:
        """Writes a spec under its digest, once. Gives the digest."""
        self.objects.put_if_absent(layout.spec(spec.digest), spec.canonical_json())
        return spec.digest

    def spec(self, digest: str) -> BuildSpec | None:
        found = self._read(layout.spec(digest), BuildSpec)
        if found is not None and found.digest != digest:
            raise CorruptBlob(f"store: spec {digest[:12]} holds another spec")
        return found

    def stage(self, stage: str, key: str) -> StageRecord | None:
        """The record of a step already done with that key."""
        record = self._read(layout.stage(stage, key), StageRecord)
        if record is not None and (record.stage, record.key) != (stage, key):
            raise CorruptBlob(f"store: stage {stage}/{key[:12]} holds another record")
        return record

    def put_stage(self, record: StageRecord) -> None:
        self.objects.put(layout.stage(record.stage, record.key), record.canonical_json())

    # Documents: small objects that change

    def read_document(self, key: str) -> tuple[bytes, str] | None:
        """Bytes and etag; None when it is not there."""
        return self.objects.get(key)

    def write_document(self, key: str, data: bytes, *, if_etag: str | None) -> str:
        """Replaces exactly that version; `if_etag` None: it must not exist yet.

        Gives the new etag. Raises: StoreConflict when somebody else wrote first.
        """
        if if_etag is not None:
            return self.objects.put_if_match(key, data, if_etag)
        etag = self.objects.put_if_absent(key, data)
        if etag is None:
            raise StoreConflict(f"store: {key} was created by somebody else first")
        return etag

    def put_object(self, key: str, data: bytes) -> None:
        self.objects.put(key, data)

    def list_objects(self, prefix: str) -> Iterator[ObjectInfo]:
        return self.objects.list(prefix)

    def delete_object(self, key: str) -> None:
        self.objects.delete(key)

    def require_bucket(self) -> None:
        """Raises: StoreMissing, naming the bucket, when it is not there."""
        next(self.objects.list(layout.INDEX), None)

    def _read(self, key: str, model: type[Model]) -> Model | None:
        found = self.objects.get(key)
        if found is None:
            return None
        try:
            return model.model_validate_json(found[0])
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise CorruptBlob(
                f"store: {key} is not a valid {model.__name__}: {field}: {first['msg']}",
                fix="it was written by another version, or damaged: delete it and build again",
            ) from None
