"""Channels: names (`candidate`, `production`) for the engines of a recipe, moved all at once.

channels/<recipe>/<channel>/<99999999 - revision>.json

A revision is created once and never changed: creating it is the move. Of two promoters one
wins, and the log of moves cannot disagree with the channel, because it is the channel. Newest
first in the listing, so the current revision is one listing of one key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from pydantic import Field, ValidationError

from enginefarm.errors import CorruptBlob, StoreConflict, StoreMissing, UsageError
from enginefarm.gates import GateContext, GateResult, require_passed
from enginefarm.manifest import Manifest
from enginefarm.recipe import PrecisionName
from enginefarm.regression_rules import recorded
from enginefarm.schema import Digest, Frozen, Name
from enginefarm.settings import user
from enginefarm.signing import Trust
from enginefarm.spec import BlobRef
from enginefarm.store.engine_store import READERS, EngineStore

CHANNELS = "channels/"
LAST_REVISION = 99_999_999


class ChannelEngine(Frozen):
    gpu: Name
    precision: PrecisionName
    spec_digest: Digest
    engine: BlobRef


class Revision(Frozen):
    """One move of a channel: who, when, to what, why, and what the gates said."""

    schema_version: int = 1
    recipe: Name
    channel: Name
    revision: int = Field(ge=1, le=LAST_REVISION)
    action: Literal["promote", "rollback"]
    engines: tuple[ChannelEngine, ...]
    gates: tuple[GateResult, ...] = ()
    source: str = Field(description="Channel or specs that it was promoted from.")
    by: str
    why: str = Field(max_length=2000)
    at: datetime

    @property
    def key(self) -> str:
        return f"{prefix(self.recipe, self.channel)}{LAST_REVISION - self.revision:08d}.json"


class Approval(NamedTuple):
    """Who let a move happen, and why: what the log then says."""

    by: str
    why: str


def prefix(recipe: str, channel: str) -> str:
    return f"{CHANNELS}{recipe}/{channel}/"


def split(name: str) -> tuple[str, str | None]:
    """`model@production` -> recipe and channel; no channel for a plain name."""
    recipe, at, channel = name.partition("@")
    if (at and not channel) or not recipe:
        raise UsageError(f"{name!r} names no channel", fix="write NAME@CHANNEL, or NAME alone")
    return recipe, channel or None


def history(store: EngineStore, recipe: str, channel: str) -> Iterator[Revision]:
    """Every move, newest first: the audit log."""
    for info in store.list_objects(prefix(recipe, channel)):
        yield _read(store, info.key)


def current(store: EngineStore, recipe: str, channel: str) -> Revision | None:
    """Where the channel points now; None when nothing was ever promoted to it."""
    newest = store.objects.first(prefix(recipe, channel))
    return None if newest is None else _read(store, newest)


def require_current(store: EngineStore, recipe: str, channel: str) -> Revision:
    """current(), or StoreMissing that names the channels there are."""
    found = current(store, recipe, channel)
    if found is None:
        there = ", ".join(names(store, recipe))
        raise StoreMissing(
            f"channel {recipe}@{channel}: nothing was promoted to it",
            fix=f"channels of {recipe}: {there}" if there else f"enginefarm promote {recipe}",
        )
    return found


def names(store: EngineStore, recipe: str) -> tuple[str, ...]:
    return tuple(store.objects.folders(f"{CHANNELS}{recipe}/"))


def _read(store: EngineStore, key: str) -> Revision:
    found = store.read_document(key)
    if found is None:
        raise StoreMissing(f"store: {key} is gone; a channel's revisions are never deleted")
    try:
        revision = Revision.model_validate_json(found[0])
    except ValidationError as error:
        raise CorruptBlob(f"store: {key} is not a channel revision") from error
    if revision.key != key:
        raise CorruptBlob(f"store: {key} holds the revision of another channel")
    return revision


def manifests_of(store: EngineStore, revision: Revision) -> tuple[Manifest, ...]:
    """The manifests that a revision names.

    Raises: StoreMissing when one is gone; CorruptBlob when one has another engine by now.
    """
    with ThreadPoolExecutor(READERS) as pool:
        read = pool.map(store.manifest, [engine.spec_digest for engine in revision.engines])
        found = list(zip(revision.engines, read, strict=True))
    name = f"channel {revision.recipe}@{revision.channel}"
    manifests: list[Manifest] = []
    for engine, manifest in found:
        if manifest is None:
            raise StoreMissing(
                f"{name}: the manifest of {engine.gpu}/{engine.precision} "
                f"({engine.spec_digest[:12]}) is gone",
                fix="roll back, or promote again: "
                f"enginefarm rollback {revision.recipe} {revision.channel}",
            )
        if manifest.engine != engine.engine:
            raise CorruptBlob(
                f"{name}: {engine.gpu}/{engine.precision} is another engine than the one that "
                "was promoted"
            )
        manifests.append(manifest)
    return tuple(manifests)


def newest_engines(store: EngineStore, recipe: str) -> tuple[Manifest, ...]:
    """Of the recipe's newest graph: the newest engine of each GPU and precision."""
    found = sorted(store.manifests(recipe), key=lambda one: (one.created_at, one.spec_digest))
    if not found:
        raise StoreMissing(f"promote: the store has no engine of {recipe!r}")
    graph = found[-1].spec.onnx_digest
    newest = {(one.gpu, one.precision): one for one in found if one.spec.onnx_digest == graph}
    return tuple(newest[key] for key in sorted(newest))


def candidates(store: EngineStore, recipe: str, source: str | None) -> tuple[Manifest, ...]:
    """What would be promoted: another channel's engines, or the newest ones."""
    if source is None:
        return newest_engines(store, recipe)
    return manifests_of(store, require_current(store, recipe, source))


def promote(
    store: EngineStore,
    recipe: str,
    channel: str,
    *,
    source: str | None = None,
    why: str = "",
    by: str | None = None,
    allow_pending: bool = False,
    allow_missing: bool = False,
    trust: Trust | None = None,
    approve: Callable[[tuple[Manifest, ...], tuple[GateResult, ...]], Approval] | None = None,
) -> Revision:
    """Moves a channel to all of a recipe's engines, in one atomic step, if every gate passes.

    source: a channel to promote from (`candidate`); None: the newest engine of each GPU and
        precision. approve: asked between the gates and the move, for as long as it takes; raises
        to stop it. After it the gates are run once more: much can happen in a night.
    Raises: GateError with every refusal, StoreConflict when somebody else moved the channel
    meanwhile, StoreMissing.
    """
    name, before = f"{recipe}@{channel}", current(store, recipe, channel)
    chosen = candidates(store, recipe, source)
    context = GateContext(
        store=store,
        production=_still_there(store, before),
        allow_pending=allow_pending,
        allow_missing=allow_missing,
        trust=trust,
        regression=recorded(store, recipe),
    )
    results = require_passed(name, chosen, context)
    if approve is not None:
        by, why = approve(chosen, results)
        chosen = tuple(store.manifest(one.spec_digest) or one for one in chosen)
        results = require_passed(name, chosen, context)
    return _move(
        store,
        Revision(
            recipe=recipe,
            channel=channel,
            revision=1 + (before.revision if before else 0),
            action="promote",
            engines=_engines(chosen),
            gates=results,
            source=source or "newest",
            by=by or user(),
            why=why,
            at=datetime.now(UTC),
        ),
    )


def rollback(
    store: EngineStore,
    recipe: str,
    channel: str,
    *,
    to: int | None = None,
    why: str = "",
    by: str | None = None,
) -> Revision:
    """Moves a channel back: to a revision, or to the last one with other engines.

    It is a new revision: the log only grows. Gates are not run again; the engines must still
    be there. Raises: StoreMissing, StoreConflict.
    """
    now = require_current(store, recipe, channel)
    target = next(
        (
            one
            for one in history(store, recipe, channel)
            if (one.revision == to if to is not None else one.engines != now.engines)
        ),
        None,
    )
    if target is None:
        wanted = f"no revision {to}" if to is not None else "nothing to go back to"
        raise StoreMissing(
            f"rollback {recipe}@{channel}: {wanted}",
            fix=f"enginefarm channel {recipe} {channel} lists its revisions",
        )
    for manifest in manifests_of(store, target):
        if not store.has_blob(manifest.engine):
            raise StoreMissing(
                f"rollback {recipe}@{channel}: the bytes of {manifest.spec.label} of revision "
                f"{target.revision} are gone"
            )
    return _move(
        store,
        target.model_copy(
            update={
                "revision": now.revision + 1,
                "action": "rollback",
                "source": f"revision {target.revision}",
                "by": by or user(),
                "why": why,
                "at": datetime.now(UTC),
            }
        ),
    )


def _move(store: EngineStore, revision: Revision) -> Revision:
    try:
        store.write_document(revision.key, revision.canonical_json(), if_etag=None)
    except StoreConflict:
        winner = current(store, revision.recipe, revision.channel)
        raise StoreConflict(
            f"channel {revision.recipe}@{revision.channel}: somebody else moved it first",
            why=f"{winner.by} at {winner.at:%H:%M:%S}: {winner.why}" if winner else "",
            fix="look at it, and try again",
        ) from None
    return revision


def _engines(manifests: tuple[Manifest, ...]) -> tuple[ChannelEngine, ...]:
    return tuple(
        ChannelEngine(
            gpu=one.gpu, precision=one.precision, spec_digest=one.spec_digest, engine=one.engine
        )
        for one in manifests
    )


def _still_there(store: EngineStore, revision: Revision | None) -> tuple[Manifest, ...]:
    engines = revision.engines if revision else ()
    found = (store.manifest(engine.spec_digest) for engine in engines)
    return tuple(one for one in found if one is not None)
