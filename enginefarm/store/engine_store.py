"""EngineStore: blobs, manifests, stage records and documents in one bucket."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

from enginefarm.documents.manifest import Manifest
from enginefarm.documents.stage import StageRecord
from enginefarm.errors import (
    CorruptBlob,
    NewerVersion,
    StoreConflict,
    StoreMissing,
    command,
    did_you_mean,
)
from enginefarm.store import layout, signing
from enginefarm.store.blobs import DIGEST_FIELD, BlobStore, missing
from enginefarm.store.layout import IndexEntry
from enginefarm.store.reading import REPAIR, or_left_out, parsed, read
from enginefarm.store.signing import Signer

if TYPE_CHECKING:
    from enginefarm.store.s3 import ObjectStore

READERS = 8
BATCH = 64


class EngineStore(BlobStore):
    """Raises, from every method: StoreUnavailable, StoreDenied, StoreMissing (bucket)."""

    def __init__(self, objects: ObjectStore, url: str) -> None:
        super().__init__(objects)
        self.url = url

    # Manifests

    def publish(
        self,
        manifest: Manifest,
        signer: Signer | None = None,
        counts: Callable[[Manifest], bool] = lambda _: True,
    ) -> bool:
        """Publishes a complete engine. Returns False if it was already published.

        The index entry is written second, also when another process published first: that process
        may have died between the two writes. A manifest that is damaged, or whose blobs the store
        has lost, is replaced. signer: signs the manifest before it is written.
        counts: tells whether a manifest that exists counts as published.
        Raises: StoreMissing when the engine's bytes are not in the store.
        """
        if manifest.spec.digest != manifest.spec_digest:
            raise CorruptBlob("manifest: spec_digest is not the digest of its spec")
        for ref in manifest.needs:
            if not self.present(ref):
                raise missing(ref)
        body = manifest.canonical_json()
        if signer is not None:  # before the manifest: hosts that check must find it signed
            self.attest(Manifest.read(body), signer)
        key = layout.manifest(manifest.spec_digest)
        created = self.objects.put_if_absent(key, body) is not None
        created = created or self._replaced(manifest.spec_digest, body, counts)
        entry = layout.entry_of(manifest)
        self.objects.put(layout.index(entry), b"")
        if not created and self.objects.head(key) is None:  # gc deleted it before it was listed
            created = self.objects.put_if_absent(key, body) is not None
        if created and not self.has_blob(manifest.engine):  # gc deleted it while we published
            self.objects.delete(layout.index(entry))
            self.objects.delete(key)
            raise missing(manifest.engine)
        return created

    def _replaced(self, spec_digest: str, body: bytes, counts: Callable[[Manifest], bool]) -> bool:
        """Whether this body replaced a manifest that nobody can use."""
        key = layout.manifest(spec_digest)
        found = self.objects.get(key)
        if found is None:
            return self.objects.put_if_absent(key, body) is not None
        with suppress(CorruptBlob):
            manifest = self._manifest_of(spec_digest, found[0])
            failed = manifest.device_verification.status == "failed"
            if not failed and not self.lacks(manifest) and counts(manifest):
                return False
        try:
            self.objects.put_if_match(key, body, found[1])
        except StoreConflict:
            return False
        return True

    def rewrite(self, spec_digest: str, change: Callable[[Manifest], Manifest]) -> Manifest | None:
        """Replaces a published manifest by what `change` makes of it. If that is the same object,
        nothing is written. Returns the manifest that counts; None if it is not published.

        Raises: StoreConflict when other processes keep writing it; CorruptBlob.
        """
        counts: Manifest | None = None

        def changed(body: bytes | None) -> bytes | None:
            nonlocal counts
            if body is None:
                counts = None
                return None
            before = self._manifest_of(spec_digest, body)
            counts = change(before)
            return None if counts is before else counts.canonical_json()

        self.objects.update(layout.manifest(spec_digest), changed)
        return counts

    def attest(self, manifest: Manifest, signer: Signer) -> None:
        """Signs the manifest. Only a manifest that was read has the digest of the stored one."""
        envelope = signer.attest(manifest).canonical_json()
        self.objects.put(signing.attestation_key(manifest), envelope)

    def attestation(self, manifest: Manifest) -> bytes | None:
        """The signed envelope, which is not checked; None if nobody signed the manifest."""
        found = self.objects.get(signing.attestation_key(manifest))
        return None if found is None else found[0]

    def list_under(self, recipe: str, manifest: Manifest) -> None:
        """Writes the index entries of a published engine: its own, because the process that
        published it may have died before that, and that of a recipe with the same spec."""
        for name in sorted({recipe, manifest.recipe}):
            self.objects.put(layout.index(layout.entry_of(manifest, name)), b"")

    def lacks(self, manifest: Manifest) -> tuple[str, ...]:
        """Digests of the blobs that the engine needs and the store has lost, judged by the
        server's metadata."""
        lost = [ref.digest for ref in manifest.needs if not self.has_blob(ref)]
        for digest in manifest.spec.plugins:
            info = self.objects.head(layout.blob_of(digest))
            if info is None or info.metadata.get(DIGEST_FIELD) != digest:
                lost.append(digest)
        return tuple(lost)

    def manifest(self, spec_digest: str) -> Manifest | None:
        """The manifest of that spec; None when it is not published.

        Raises: CorruptBlob when its body is not a manifest, or is the manifest of another spec.
        """
        found = self.objects.get(layout.manifest(spec_digest))
        return None if found is None else self._manifest_of(spec_digest, found[0])

    def _manifest_of(self, spec_digest: str, body: bytes) -> Manifest:
        manifest = parsed(layout.manifest(spec_digest), body, Manifest)
        if manifest.spec_digest != spec_digest or manifest.spec.digest != spec_digest:
            raise CorruptBlob(
                f"store: manifest {spec_digest[:12]} holds another spec "
                f"({manifest.spec.digest[:12]})",
                fix=REPAIR,
            )
        return manifest

    def digests(self, beginning: str) -> Iterator[str]:
        """Spec digests of published engines that begin with these digits."""
        for info in self.objects.list(layout.MANIFESTS + beginning):
            yield info.key.removeprefix(layout.MANIFESTS).removesuffix(".json")

    def index(
        self, recipe: str | None = None, gpu: str | None = None, precision: str | None = None
    ) -> Iterator[IndexEntry]:
        """The published engines, from one paginated listing, without reading a manifest."""
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
        """Manifests that pass the filters, in the index's order, read several at a time.

        A manifest that is damaged, or that a newer version wrote, is left out with a warning in
        the log, so that it does not hide the others.
        """
        return (found for _, found in self._listed(recipe, gpu, precision))

    def as_listed(
        self, recipe: str | None = None, gpu: str | None = None, precision: str | None = None
    ) -> Iterator[Manifest]:
        """The same, each with the name of the recipe that lists it: a recipe with the same spec
        shares the engine. Only to be shown: a signature covers the name of the first recipe."""
        return (
            found.model_copy(update={"recipe": entry.recipe})
            for entry, found in self._listed(recipe, gpu, precision)
        )

    def _listed(
        self, recipe: str | None, gpu: str | None, precision: str | None
    ) -> Iterator[tuple[IndexEntry, Manifest]]:
        entries = self.index(recipe, gpu, precision)
        with ThreadPoolExecutor(READERS) as pool:
            while batch := list(islice(entries, BATCH)):
                read = pool.map(self._manifest_or_warn, [one.spec_digest for one in batch])
                yield from (
                    (entry, found) for entry, found in zip(batch, read, strict=True) if found
                )

    def _manifest_or_warn(self, spec_digest: str) -> Manifest | None:
        return or_left_out(lambda: self.manifest(spec_digest), CorruptBlob, NewerVersion)

    def complete(self, recipe: str) -> frozenset[str]:
        """Spec digests that the index lists for a recipe, from one paginated listing."""
        return frozenset(entry.spec_digest for entry in self.index(recipe))

    def complete_of_each(self) -> dict[str, frozenset[str]]:
        """complete() of every recipe that is listed, from one paginated listing."""
        found: defaultdict[str, set[str]] = defaultdict(set)
        for entry in self.index():
            found[entry.recipe].add(entry.spec_digest)
        return {recipe: frozenset(digests) for recipe, digests in found.items()}

    def whole(
        self, recipe: str, spec_digests: Iterable[str], listed: Collection[str] | None = None
    ) -> dict[str, Manifest]:
        """The manifests of those specs whose manifest, index entry and blobs all exist, by spec
        digest.

        listed: complete() of the recipe, if it is known. Several are read at a time; a blob that
        several engines need is looked up once.
        """
        listed = self.complete(recipe) if listed is None else listed
        asked = [digest for digest in spec_digests if digest in listed]
        with ThreadPoolExecutor(READERS) as pool:
            read = pool.map(self._manifest_or_warn, asked)
            found = [one for one in read if one and one.device_verification.status != "failed"]
            needed = {ref.digest: ref for one in found for ref in one.needs}
            has = dict(zip(needed, pool.map(self.has_blob, needed.values()), strict=True))
        return {one.spec_digest: one for one in found if all(has[ref.digest] for ref in one.needs)}

    def recipes(self) -> tuple[str, ...]:
        return tuple(self.objects.folders(layout.INDEX))

    def no_engine(self, recipe: str, usual: str) -> StoreMissing:
        """The error to raise when no engine of that recipe was found.

        usual: the command to name in the error when the user ran none.
        If the store does not have the recipe, it lists the store's recipes and suggests the one
        with the most similar name.
        """
        known = sorted(self.recipes())
        asked = command(usual)
        if recipe in known:
            return StoreMissing(
                f"{asked}: the store {self.url} has no such engine of {recipe!r}",
                fix=f"`enginefarm list {recipe}` shows the engines that it has",
            )
        return StoreMissing(
            f"{asked}: the store {self.url} has no recipe {recipe!r}",
            why=f"its recipes are: {', '.join(known)}" if known else "it holds no engine yet",
            fix=did_you_mean(recipe, known) or "build it first, or check ENGINEFARM_STORE",
        )

    # Stages

    def stage(self, stage: str, key: str) -> StageRecord | None:
        """The record of the stage with that key; None when it was never done."""
        record = read(self.objects, layout.stage(stage, key), StageRecord)
        if record is not None and (record.stage, record.key) != (stage, key):
            raise CorruptBlob(f"store: stage {stage}/{key[:12]} holds another record")
        return record

    def put_stage(self, record: StageRecord) -> None:
        self.objects.put(layout.stage(record.stage, record.key), record.canonical_json())

    def require_bucket(self) -> None:
        """Raises: StoreMissing, naming the bucket, when it is not there."""
        next(self.objects.list(layout.INDEX), None)
