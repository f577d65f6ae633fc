"""Where stages run, and how their results are recorded and found again.

A result is recorded in the store under a key of everything that determines it, so that no machine
does the same work twice.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from enginefarm.digest import sha256_bytes
from enginefarm.documents.manifest import Manifest
from enginefarm.documents.spec import BlobRef, BuildSpec, OnnxRef
from enginefarm.documents.stage import StageOutput, StageRecord
from enginefarm.errors import CorruptBlob, SourceError
from enginefarm.progress import report
from enginefarm.schema import canonical_json
from enginefarm.store import layout, open_store
from enginefarm.store.cache import BlobCache
from enginefarm.store.disk import clone_checked, writing
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.statements import SigningPolicy, name_it

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"


@dataclass(frozen=True)
class Site:
    """The shared store and this machine's cache."""

    store: EngineStore
    cache: BlobCache

    @contextmanager
    def scratch(self) -> Generator[Path]:
        """A folder on the cache's disk, so that a rename moves results into the cache."""
        root = self.cache.root / "scratch"
        with writing(root):
            root.mkdir(parents=True, exist_ok=True)
            path = Path(tempfile.mkdtemp(dir=root))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


def here() -> Site:
    """The site that the environment names (ENGINEFARM_STORE, ENGINEFARM_CACHE)."""
    return Site(store=open_store(), cache=BlobCache())


def plugin_libraries(site: Site, spec: BuildSpec) -> tuple[Path, ...]:
    """An engine's plugin libraries, on this machine. Raises: StoreMissing, CorruptBlob."""
    return tuple(site.cache.ensure(site.store, site.store.blob(digest)) for digest in spec.plugins)


def whole(
    site: Site, recipe: str, spec_digest: str, policy: SigningPolicy | None = None
) -> Manifest | None:
    """The published engine, also listed under this recipe, if it is complete.

    Blobs that the store has lost are uploaded from this machine's cache. None for an engine that
    has to be built, because it is not published or cannot be completed. policy: an engine that no
    trusted builder signed does not count as published, and the recipe's name for another recipe's
    engine is signed.
    Raises: NewerVersion.
    """
    try:
        manifest = site.store.manifest(spec_digest)
    except CorruptBlob:  # publishing replaces it
        return None
    if manifest is None or manifest.device_verification.status == "failed":
        return None
    if not all(healed(site, ref) for ref in manifest.needs) or site.store.lacks(manifest):
        return None
    if policy is not None:
        if not policy.signed(site.store, manifest):
            return None
        name_it(site.store, recipe, manifest, policy.signer)
    site.store.list_under(recipe, manifest)
    if site.store.objects.head(layout.manifest(spec_digest)) is None:
        return None  # gc deleted it before it was listed again: it is published again
    return manifest


def healed(site: Site, ref: BlobRef) -> bool:
    """Whether the store has the blob. A lost blob is uploaded from the cache first."""
    if site.store.has_blob(ref):
        return True
    kept = site.cache.intact(ref)
    return kept is not None and site.store.put_blob(kept) == ref


def stage_key(**parts: Any) -> str:
    """The key of everything that determines a stage's result."""
    return sha256_bytes(canonical_json(parts))


def recorded(
    site: Site,
    stage: str,
    key: str,
    work: Callable[[Path], StageOutput],
    policy: SigningPolicy | None = None,
    key_again: Callable[[], str] | None = None,
) -> tuple[StageRecord, bool]:
    """The stage's record, and whether it already existed.

    The work is done again if the record is damaged, or if its blobs are neither in the store nor in
    the cache.
    key_again: computes the key again after the work, for a key that depends on the user's files: a
    result of files that changed meanwhile is not recorded (SourceError).
    policy: for a process that signs. Only records that a trusted builder signed count, and new
    ones are signed.
    """
    found = found_record(site, stage, key)
    if found is not None and policy is not None and not policy.trusts(found):
        found = None
    if found is not None and all(healed(site, ref) for ref in found.outputs.values()):
        report(stage, 1, 1, "cached")
        return found, True
    report(stage, 0, None)
    started = time.monotonic()
    with site.scratch() as scratch, writing(scratch):
        produced = work(scratch)
        outputs = {name: site.cache.add(path) for name, path in produced.files.items()}
    if key_again is not None:
        require_unchanged(stage, key, key_again())
    for ref in outputs.values():
        site.store.put_blob(site.cache.path(ref))
    record = StageRecord(
        stage=stage,
        key=key,
        outputs=outputs,
        values=dict(produced.values),
        seconds=time.monotonic() - started,
        created_at=datetime.now(UTC),
    )
    if policy is not None:
        record = policy.sign(record)
    site.store.put_stage(record)
    report(stage, 1, 1)
    return record, False


def require_unchanged(stage: str, before: str, after: str) -> None:
    """Compares keys or digests of a step's inputs. Raises: SourceError."""
    if before != after:
        raise SourceError(
            f"{stage}: the recipe's files changed while the step ran; its result was not kept",
            why="the model's files or data have another digest than when the step began",
            fix="run the build again when nothing writes to the files any more",
        )


def found_record(site: Site, stage: str, key: str) -> StageRecord | None:
    """The record of a stage; None if it was never done, or if its record is damaged."""
    try:
        return site.store.stage(stage, key)
    except CorruptBlob:
        return None


def materialize(site: Site, onnx: OnnxRef, folder: Path) -> Path:
    """Copies the model (and its external data) to a folder, and checks each copy's digest."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, ref in ((MODEL_FILE, onnx.model), (DATA_FILE, onnx.data)):
        if ref is not None:
            clone_checked(site.cache.ensure(site.store, ref), folder / name, ref)
    return folder / MODEL_FILE


def onnx_files_of(path: Path) -> dict[str, Path]:
    files = {"model": path}
    data = path.with_name(DATA_FILE)
    if data.exists():
        files["data"] = data
    return files


def onnx_ref_of(record: StageRecord) -> OnnxRef:
    return OnnxRef(
        model=record.outputs["model"],
        data=record.outputs.get("data"),
        opset=int(str(record.values["opset"])),
    )
