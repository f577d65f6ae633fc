"""Garbage collection: deletes what no channel, recent build or grace period holds.

Held are: the engines of every channel's last revisions; the last N builds of each recipe, GPU and
precision; everything that was written or used again within the grace period; and every blob that
a held document names. Documents are deleted before the blobs that they name. Each object is
checked again just before it is deleted, so that a running build loses nothing: a blob that it
uses again gets a new date (store.blobs.TOUCH_AFTER). Dates are compared with the store's own
clock, because those of this machine and of builders may be wrong.

Who uses an engine again writes its index entry or a channel first, and looks for the manifest
afterwards. gc deletes the manifest first, and looks at index entries and channels afterwards: in
whatever order their requests arrive, one of the two sees the other. gc then puts the manifest back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from itertools import groupby

from pydantic import Field

from enginefarm.documents.manifest import Manifest
from enginefarm.errors import StoreDenied, StoreMissing, UsageError
from enginefarm.progress import report
from enginefarm.release import holders
from enginefarm.schema import Frozen
from enginefarm.store import blobs, layout
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.object_info import ObjectInfo
from enginefarm.tables import layers

ATTESTATIONS = "attestations/"
DATES_STEP = timedelta(seconds=2)
"""A store's dates are whole seconds."""


class Policy(Frozen):
    keep_builds: int = Field(default=3, ge=1, description="Of each recipe, GPU and precision.")
    keep_revisions: int = Field(default=3, ge=1, description="Of each channel, for rollback.")
    grace: timedelta = timedelta(days=7)


class Garbage(Frozen):
    """An object to delete. spec_digest: the engine that the document is about; empty for others."""

    key: str
    size_bytes: int
    why: str
    spec_digest: str = ""


class Collection(Frozen):
    """The result of gc. deleted: False after a dry run."""

    garbage: tuple[Garbage, ...]
    kept_engines: int
    kept_bytes: int
    deleted: bool

    @property
    def freed_bytes(self) -> int:
        return sum(one.size_bytes for one in self.garbage)


def collect(
    store: EngineStore,
    policy: Policy | None = None,
    *,
    delete: bool = False,
    now: datetime | None = None,
) -> Collection:
    """Finds what nothing holds, and deletes it if `delete` is set.

    Raises: UsageError for a grace period too short to protect a build that runs.
    """
    policy = policy or Policy()
    if policy.grace < 2 * blobs.TOUCH_AFTER:
        raise UsageError(
            f"gc: a grace period of {policy.grace} does not protect builds that are running",
            fix=f"give at least {2 * blobs.TOUCH_AFTER}",
        )
    limit = (now or store.objects.clock()) - policy.grace
    # Blobs are listed first: one that comes later is not a candidate at all.
    old_blobs = [info for info in store.objects.list(layout.BLOBS) if info.modified < limit]
    all_bytes = sum(info.size_bytes for info in store.objects.list(layout.BLOBS))
    entries = list(store.index())
    manifests = {one.spec_digest: one for one in store.manifests()}
    superseded = _superseded(store, entries, manifests, policy)
    old = {info.key for info in store.objects.list(layout.MANIFESTS) if info.modified < limit}
    to_delete = {
        one.spec_digest: one for one in superseded if layout.manifest(one.spec_digest) in old
    }
    kept = [one for digest, one in manifests.items() if digest not in to_delete]
    garbage = [
        document
        for manifest in to_delete.values()
        for document in _documents(store, entries, manifest, policy.keep_builds)
    ]
    held = holders.digests(one.canonical_json() for one in kept)
    stale = _stale_records(store, held, limit)
    garbage += [Garbage(key=info.key, size_bytes=info.size_bytes, why=why) for info, why in stale]
    deleted_keys = {one.key for one in garbage}
    held |= holders.by_documents(store, deleted_keys)
    garbage += [
        Garbage(key=info.key, size_bytes=info.size_bytes, why="nothing names it")
        for info in old_blobs
        if info.key.rpartition("/")[2] not in held
    ]
    if delete:
        garbage = _delete(store, garbage, limit, policy)
    freed = sum(one.size_bytes for one in garbage if one.key.startswith(layout.BLOBS))
    return Collection(
        garbage=tuple(garbage),
        kept_engines=len(kept),
        kept_bytes=all_bytes - freed,
        deleted=delete,
    )


def _superseded(
    store: EngineStore,
    entries: Iterable[layout.IndexEntry],
    manifests: Mapping[str, Manifest],
    policy: Policy,
) -> list[Manifest]:
    """Manifests that no channel names, and that are beyond the last N of every recipe's."""
    held = set(holders.named_by_channels(store, policy.keep_revisions))
    groups: defaultdict[tuple[str, str, str], list[Manifest]] = defaultdict(list)
    for entry in entries:
        if entry.spec_digest in manifests:
            group = groups[entry.recipe, entry.gpu, entry.precision]
            group.append(manifests[entry.spec_digest])
    for group in groups.values():
        group.sort(key=lambda one: (one.created_at, one.spec_digest), reverse=True)
        held |= {one.spec_digest for one in group[: policy.keep_builds]}
    return [one for digest, one in manifests.items() if digest not in held]


def _documents(
    store: EngineStore,
    entries: Iterable[layout.IndexEntry],
    manifest: Manifest,
    keep_builds: int,
) -> Iterable[Garbage]:
    """The documents of an engine, its manifest first, and then its index entries."""
    why = f"{manifest.recipe} {manifest.spec.label}: {keep_builds} newer builds, in no channel"
    digest = manifest.spec_digest
    listed = {entry for entry in entries if entry.spec_digest == digest}
    listed.add(layout.entry_of(manifest))
    keys = [layout.manifest(digest), *sorted(map(layout.index, listed))]
    for there in (f"{ATTESTATIONS}{digest}/", layers.key(digest)):
        keys += [info.key for info in store.objects.list(there)]
    return (Garbage(key=key, size_bytes=0, why=why, spec_digest=digest) for key in keys)


def _stale_records(
    store: EngineStore, held: frozenset[str], limit: datetime
) -> list[tuple[ObjectInfo, str]]:
    """Old stage records whose outputs no kept manifest names."""
    return [
        (info, "a step of models that are gone")
        for info in store.objects.list(layout.STAGES)
        if info.modified < limit and not holders.digests(holders.text(store, info.key)) & held
    ]


def _in_use_again(
    store: EngineStore, documents: list[Garbage], limit: datetime, policy: Policy
) -> bool:
    """Whether an engine was promoted, listed or published again since the first look.

    documents: what is written about it.
    """
    (digest,) = {one.spec_digest for one in documents}
    recipes = {
        entry.recipe for one in documents if (entry := layout.parse_index(one.key)) is not None
    }
    if digest in holders.named_by_channels(store, policy.keep_revisions, sorted(recipes)):
        return True
    looked_at = (layout.INDEX, layout.MANIFESTS)
    found = [store.objects.head(one.key) for one in documents if one.key.startswith(looked_at)]
    return any(info is not None and info.modified >= limit for info in found)


def _delete(
    store: EngineStore, garbage: list[Garbage], limit: datetime, policy: Policy
) -> list[Garbage]:
    """Deletes in order, each after a second look. Returns what was deleted.

    Raises: StoreMissing for blobs that a document which was written meanwhile names.
    """
    deleted: list[Garbage] = []
    for engine, group in groupby(garbage, lambda one: one.spec_digest):
        mine = list(group)
        if not engine:
            deleted += _delete_old(store, mine, limit)
        elif _delete_engine(store, mine, limit, policy):
            deleted += mine
        report("gc", len(deleted), len(garbage), mine[-1].key)
    return deleted


def _delete_engine(
    store: EngineStore, documents: list[Garbage], limit: datetime, policy: Policy
) -> bool:
    """Whether the engine was deleted. documents: its manifest, its index entries, and the rest."""
    manifest, *others = (one.key for one in documents)
    found = store.objects.get(manifest)
    if found is None or _in_use_again(store, documents, limit, policy):
        return False
    store.objects.delete(manifest)
    if _in_use_again(store, documents, limit, policy):
        _put_back(store, {manifest: found[0]})
        return False
    listed = [key for key in others if key.startswith(layout.INDEX)]
    for key in listed:
        store.objects.delete(key)
    if store.objects.head(manifest) is not None:  # published anew, and perhaps listed before
        _put_back(store, dict.fromkeys(listed, b""))
        return False
    for key in others[len(listed) :]:
        store.objects.delete(key)
    return True


def _put_back(store: EngineStore, objects: Mapping[str, bytes]) -> None:
    """Raises: StoreMissing for a key of the store that may delete only."""
    for key, body in objects.items():
        try:
            store.objects.put_if_absent(key, body)
        except StoreDenied as error:
            raise StoreMissing(
                f"gc: {key} was deleted at the moment when something used it again",
                why="this process may delete it, but not write it back",
                fix="build the recipe again, which restores it",
            ) from error


def _delete_old(store: EngineStore, garbage: list[Garbage], limit: datetime) -> list[Garbage]:
    """Deletes records and blobs that were not written or used again since the first look."""
    started = store.objects.clock() - DATES_STEP
    named: frozenset[str] | None = None
    deleted: dict[str, Garbage] = {}
    for one in garbage:
        info = store.objects.head(one.key)
        if info is None or info.modified >= limit:
            continue
        name = one.key.rpartition("/")[2]
        if one.key.startswith(layout.BLOBS):
            if named is None:  # by what was published since the first look, and by what stayed
                named = holders.by_documents(store)
            if name in named:
                continue
        store.objects.delete(one.key)
        deleted[name] = one
        report("gc", len(deleted), len(garbage), one.key)
    needed = holders.by_documents(store, since=started) & deleted.keys()
    lost = sorted(name for name in needed if store.objects.head(deleted[name].key) is None)
    if lost:
        raise StoreMissing(
            f"gc: {len(lost)} blobs were deleted at the moment when something used them again",
            why=f"a document that was written meanwhile names {', '.join(lost[:5])}",
            fix="enginefarm fsck names the engines; building them again restores what is missing",
        )
    return [*deleted.values()]
