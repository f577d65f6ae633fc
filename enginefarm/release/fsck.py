"""fsck: an audit of the whole store, and the repair of what can be repaired.

It repairs a missing index entry, a lost or damaged blob that is in this machine's cache, and an
engine in quarantine whose withdrawal was interrupted. It deletes damaged blobs and documents, and
index entries of engines whose blobs are lost, so that the next build makes them again. It only
reports what a newer version wrote, and what needs a build or a person.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from enginefarm.documents.manifest import Manifest
from enginefarm.documents.spec import BlobRef
from enginefarm.documents.stage import StageRecord
from enginefarm.errors import CorruptBlob, EnginefarmError, NewerVersion, StoreMissing
from enginefarm.recipes import recipe_store
from enginefarm.release.findings import KINDS, Audit, AuditState
from enginefarm.store import channels, layout, quarantine
from enginefarm.store.engine_store import READERS
from enginefarm.store.object_info import ObjectInfo
from enginefarm.store.reading import read
from enginefarm.store.site import Site

DIGEST = re.compile(r"[0-9a-f]{64}")


def check(site: Site, *, repair: bool = False, read_bytes: bool = False) -> Audit:
    """Audits every object of the store; with `repair`, repairs what can be repaired.

    read_bytes: also downloads and hashes every blob; otherwise a blob is judged by the server's
    size and checksum.
    Raises: StoreDenied where `repair` may not write; StoreUnavailable.
    """
    work = AuditState(site, repair, read_bytes)
    for audit in PASSES:
        audit(work)
    return Audit(
        objects=work.objects,
        engines=work.engines,
        bytes_hashed=work.bytes_hashed,
        findings=tuple(work.findings),
    )


def _blobs(work: AuditState) -> None:
    infos = list(work.listed(layout.BLOBS))
    with ThreadPoolExecutor(READERS) as pool:
        for info, wrong in zip(infos, pool.map(partial(_damage, work), infos), strict=True):
            digest = info.key.rpartition("/")[2]
            if work.read_bytes:
                work.bytes_hashed += info.size_bytes
            if wrong is None:
                work.present.add(digest)
            elif not DIGEST.fullmatch(digest):
                work.add(info.key, wrong, harmless=True)
            else:
                _damaged(work, info, digest, wrong)


def _damage(work: AuditState, info: ObjectInfo) -> str | None:
    """What is wrong with a blob; None if no fault was found."""
    digest = info.key.rpartition("/")[2]
    if not DIGEST.fullmatch(digest) or info.key != layout.blob_of(digest):
        return "this object is not a blob"
    ref = BlobRef(digest=digest, size_bytes=info.size_bytes)
    if not work.store.has_blob(ref):
        return "its digest or checksum does not match its name"
    if work.read_bytes:
        try:
            with work.site.scratch() as folder:
                work.store.fetch_blob(ref, folder / "blob")
        except (CorruptBlob, StoreMissing) as error:
            return error.what
    return None


def _damaged(work: AuditState, info: ObjectInfo, digest: str, wrong: str) -> None:
    path = work.site.cache.path(BlobRef(digest=digest, size_bytes=0))
    with suppress(OSError):
        ref = BlobRef(digest=digest, size_bytes=path.stat().st_size)
        kept_here = work.site.cache.intact(ref)
        if kept_here is not None:

            def upload_again() -> None:
                work.store.objects.delete(info.key)
                work.store.put_blob(kept_here)

            work.add_repairable(
                info.key, wrong, "uploaded again from this machine's cache", upload_again
            )
            work.present.add(digest)
            return
    work.add_repairable(info.key, wrong, "deleted, so that a build makes it again")


def _manifests(work: AuditState) -> None:
    listed = {(entry.recipe, entry.spec_digest) for entry in work.store.index()}
    for info in work.listed(layout.MANIFESTS):
        digest = info.key.removeprefix(layout.MANIFESTS).removesuffix(".json")
        if info.key != layout.manifest(digest) or not DIGEST.fullmatch(digest):
            work.add(info.key, "this object is not a manifest", harmless=True)
            continue
        try:
            manifest = work.store.manifest(digest)
        except NewerVersion as error:
            work.unreadable.add(digest)
            work.add(info.key, error.what, fix=error.fix, harmless=True)
            continue
        except CorruptBlob as error:
            work.add_repairable(info.key, error.what, "deleted: build it again")
            continue
        if manifest is not None:
            _manifest(work, info.key, manifest, listed)


def _is_quarantined(work: AuditState, digest: str) -> bool:
    """False for a record that cannot be read: `_documents` reports it, and nothing is withdrawn."""
    try:
        return quarantine.quarantined(work.store, digest) is not None
    except (CorruptBlob, NewerVersion):
        return False


def _manifest(work: AuditState, key: str, manifest: Manifest, listed: set[tuple[str, str]]) -> None:
    name = f"{manifest.recipe} {manifest.spec.label}"
    digest = manifest.spec_digest
    if _is_quarantined(work, digest):
        work.add_repairable(
            key,
            f"{name} is in quarantine, and was not withdrawn",
            "withdrawn",
            lambda: quarantine.withdraw(work.store, manifest),
        )
        return
    gone = work.missing_blobs(manifest.needs, name)
    if gone:
        work.add(
            key,
            f"{name}: {', '.join(ref.digest[:12] for ref in gone)} is lost, and not in the cache "
            f"{work.site.cache.root}",
            fix=f"enginefarm build RECIPE, with the recipe.yaml of {manifest.recipe}",
        )
        return
    for ref in work.missing_blobs(
        tuple(ref for ref in manifest.names if ref not in manifest.needs), name
    ):
        work.add(
            layout.blob(ref),
            f"{name}: a log, layers, a skeleton or weights are lost; the engine is whole",
            harmless=True,
        )
    work.engines += 1
    work.complete[digest] = manifest
    if (manifest.recipe, digest) not in listed:
        work.add_repairable(
            layout.index(layout.entry_of(manifest)),
            f"{name} ({digest[:12]}) is published, and the index does not list it",
            "listed",
            lambda: work.store.list_under(manifest.recipe, manifest),
        )


def _index(work: AuditState) -> None:
    for info in work.listed(layout.INDEX):
        entry = layout.parse_index(info.key)
        if entry is None:
            work.add(info.key, "this object is not an index entry", harmless=True)
            continue
        manifest = work.complete.get(entry.spec_digest)
        if manifest is None:
            if entry.spec_digest not in work.unreadable:
                what = "the index lists an engine that is not whole"
                work.add_repairable(info.key, what, "deleted")
        elif entry != layout.entry_of(manifest, entry.recipe):
            what = f"the index lists {manifest.spec.label} as {entry.gpu}/{entry.precision}"
            work.add_repairable(info.key, what, "deleted")


def _stages(work: AuditState) -> None:
    for info in work.listed(layout.STAGES):
        try:
            record = read(work.store.objects, info.key, StageRecord)
        except CorruptBlob as error:
            work.add_repairable(info.key, error.what, "deleted: it is done again")
            continue
        if record is None:
            continue
        if layout.stage(record.stage, record.key) != info.key:
            what = "the record is of another step"
            work.add_repairable(info.key, what, "deleted: it is done again")
        elif gone := work.missing_blobs(tuple(record.outputs.values()), info.key):
            what = f"its output {', '.join(ref.digest[:12] for ref in gone)} is lost"
            work.add(info.key, what, fix="it is made again when it is needed", harmless=True)


def _channels(work: AuditState) -> None:
    for recipe in work.store.objects.folders(channels.CHANNELS):
        for channel in channels.names(work.store, recipe):
            key = channels.prefix(recipe, channel)
            try:
                revision = channels.current(work.store, recipe, channel)
                if revision is not None:
                    channels.manifests_of(work.store, revision)
            except NewerVersion as error:
                work.add(key, error.what, fix=error.fix, harmless=True)
            except EnginefarmError as error:
                work.add(key, error.what, fix=error.fix)


def _recipes(work: AuditState) -> None:
    for name in recipe_store.names(work.store):
        key = f"{recipe_store.RECIPES}{name}.json"
        try:
            pushed = recipe_store.read(work.store, name)
        except NewerVersion as error:
            work.add(key, error.what, fix=error.fix, harmless=True)
            continue
        except EnginefarmError as error:
            work.add(key, error.what, fix="enginefarm recipes push FOLDER")
            continue
        for path, ref in pushed.files.items():
            if work.missing_blobs((ref,), f"the recipe {name}"):
                what = f"the recipe's file {path} is lost"
                work.add(key, what, fix="enginefarm recipes push FOLDER")


def _documents(work: AuditState) -> None:
    for prefix, check, made_again in KINDS:
        for info in work.listed(prefix):
            if not info.key.endswith(".json"):
                work.add(info.key, "this object is not one of enginefarm's", harmless=True)
                continue
            try:
                check(work.store, info.key)
            except NewerVersion as error:
                work.add(info.key, error.what, fix=error.fix, harmless=True)
            except CorruptBlob as error:
                if made_again:
                    remedy = f"deleted; {made_again} writes it again"
                    work.add_repairable(info.key, error.what, remedy)
                else:
                    work.add(info.key, error.what, fix=error.fix)


PASSES: tuple[Callable[[AuditState], None], ...] = (
    _blobs,
    _manifests,
    _index,
    _stages,
    _channels,
    _recipes,
    _documents,
)
"""The order matters: blobs are known before the documents that name them are judged."""
