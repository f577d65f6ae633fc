"""Where stages run, and how their results are recorded and found again.

A result is recorded in the store under a key of everything that decided it: the same
question is never worked out twice, by anyone.
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
from enginefarm.store import open_store
from enginefarm.store.cache import BlobCache
from enginefarm.store.copies import clone_checked
from enginefarm.store.disk import writing
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.statements import SigningPolicy, name_it

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"


@dataclass(frozen=True)
class Site:
    """The shared store, and this machine's cache."""

    store: EngineStore
    cache: BlobCache

    @contextmanager
    def scratch(self) -> Generator[Path]:
        """A folder on the cache's disk, so that results move into it by rename."""
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
    """The published engine, listed under the recipe too, when all that it needs is there.

    What the store has lost is uploaded from this machine's cache, where that has it. None for
    an engine that has to be built: it is not published, or damaged beyond that. policy: then
    one that no trusted builder signed counts as not published, and the recipe's name for
    another recipe's engine is signed.
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
    return manifest


def healed(site: Site, ref: BlobRef) -> bool:
    """Whether the store has the blob, now that the cache has given it what was lost."""
    if site.store.has_blob(ref):
        return True
    kept = site.cache.intact(ref)
    return kept is not None and site.store.put_blob(kept) == ref


def stage_key(**parts: Any) -> str:
    """The key of everything that decides a stage's result."""
    return sha256_bytes(canonical_json(parts))


def recorded(
    site: Site,
    stage: str,
    key: str,
    work: Callable[[Path], StageOutput],
    policy: SigningPolicy | None = None,
    key_again: Callable[[], str] | None = None,
) -> tuple[StageRecord, bool]:
    """The stage's record, and whether it was there already.

    key_again: works the key out again after the work, where it depends on files of the user: a
    result of files that changed meanwhile is not recorded (SourceError).

    policy: of a process that signs what the record says: it trusts records that a trusted
    builder signed, does the others' work again, and signs its own.

    A record that is damaged, or whose blobs have gone from the store and are not in the cache
    either, is worked out again.
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
            f"{stage}: the recipe's files changed while the step ran; nothing of it is kept",
            why="the model's files or data have another digest than when the step began",
            fix="run the build again when nothing writes to them any more",
        )


def found_record(site: Site, stage: str, key: str) -> StageRecord | None:
    """The record of a step already done; None too for one that is damaged: it is done again."""
    try:
        return site.store.stage(stage, key)
    except CorruptBlob:
        return None


def materialize(site: Site, onnx: OnnxRef, folder: Path) -> Path:
    """The model (and its external data) in a folder: copies, each hashed after it is made."""
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
