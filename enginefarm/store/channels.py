"""Channels: names (`candidate`, `production`) for the engines of a recipe, moved together.

channels/<recipe>/<channel>/<99999999 - revision>.json

A revision is created once and never changed: creating it is the move. If two people promote at
once, one succeeds. The log of moves cannot disagree with the channel, because it is the channel.
The key of the newest revision sorts first, so that a listing of one key finds it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from pydantic import Field

from enginefarm.documents.manifest import Manifest
from enginefarm.documents.signed import SignedDocument
from enginefarm.documents.spec import BlobRef
from enginefarm.errors import CorruptBlob, NewerVersion, StoreMissing, UsageError
from enginefarm.names import PrecisionName
from enginefarm.schema import NAME, Digest, Frozen, Moment, Name
from enginefarm.store import statements
from enginefarm.store.engine_store import READERS, EngineStore
from enginefarm.store.reading import LOG, or_left_out, read
from enginefarm.store.signing import Trust

CHANNELS = "channels/"
LAST_REVISION = 99_999_999
STEP_BACK = "restore it from a copy; or delete it, and the channel points at the revision before"
"""The farm never does this by itself, because it changes what hosts run."""
UNREADABLE = (CorruptBlob, NewerVersion)
REVISION_KEY = re.compile(CHANNELS + r"[^/]+/[^/]+/[0-9]{8}\.json")


Verdict = Literal["passed", "waived", "refused"]


class GateResult(Frozen):
    """The verdict of one gate on one engine (spec_digest None: on all engines together)."""

    gate: str
    verdict: Verdict
    detail: str
    spec_digest: Digest | None = None
    label: str = ""

    @classmethod
    def on(cls, manifest: Manifest, gate: str, verdict: Verdict, detail: str) -> GateResult:
        digest, label = manifest.spec_digest, manifest.spec.label
        return cls(gate=gate, verdict=verdict, detail=detail, spec_digest=digest, label=label)


class ChannelEngine(Frozen):
    gpu: Name
    precision: PrecisionName
    spec_digest: Digest
    engine: BlobRef

    @classmethod
    def of(cls, manifest: Manifest) -> ChannelEngine:
        return cls.model_validate(manifest, from_attributes=True)


class Revision(SignedDocument):
    """One move of a channel: who, when, to what, why, and what the gates said."""

    schema_version: int = 1
    recipe: Name
    channel: Name
    revision: int = Field(ge=1, le=LAST_REVISION)
    action: Literal["promote", "rollback"]
    engines: tuple[ChannelEngine, ...]
    gates: tuple[GateResult, ...] = ()
    source: str = Field(description="The channel or specs that the engines were promoted from.")
    by: str
    why: str = Field(max_length=2000)
    at: Moment

    @property
    def key(self) -> str:
        return f"{prefix(self.recipe, self.channel)}{LAST_REVISION - self.revision:08d}.json"


def prefix(recipe: str, channel: str) -> str:
    return f"{CHANNELS}{recipe}/{channel}/"


def split(name: str) -> tuple[str, str | None]:
    """`model@production` -> recipe and channel; no channel for a plain name."""
    recipe, at, channel = name.partition("@")
    if (at and not channel) or not recipe:
        raise UsageError(f"{name!r} does not name a channel", fix="write NAME@CHANNEL or NAME")
    return named(recipe), named(channel, "channel") if channel else None


def named(name: str, what: str = "recipe") -> str:
    """Returns the name if it is a possible one. Capitals pass: the lookup of the name then suggests
    the right one. Raises: UsageError."""
    if not re.fullmatch(NAME, name.lower()):
        raise UsageError(
            f"{name[:100]!r} cannot be the name of a {what}",
            why="a name has 1 to 64 of a-z, 0-9, dot, dash and underscore, and begins and ends "
            "with a letter or digit",
        )
    return name


def history(
    store: EngineStore, recipe: str, channel: str, *, whole: bool = False
) -> Iterator[Revision]:
    """Every move, newest first: the audit log. A revision that is damaged, or that a newer version
    wrote, is left out with a note in the log; with `whole` it is an error."""
    for key in keys(store, recipe, channel):
        kinds = () if whole else UNREADABLE
        revision = or_left_out(lambda key=key: _read(store, key), *kinds)
        if revision is not None:
            yield revision


def all_current(store: EngineStore, recipe: str) -> Iterator[Revision]:
    """The current revision of each of the recipe's channels that this version can read."""
    for name in names(store, recipe):
        revision = or_left_out(lambda name=name: current(store, recipe, name), *UNREADABLE)
        if revision is not None:
            yield revision


def keys(store: EngineStore, recipe: str, channel: str) -> Iterator[str]:
    """The keys of its revisions, newest first, without stray objects between them."""
    for info in store.objects.list(prefix(recipe, channel)):
        if REVISION_KEY.fullmatch(info.key):
            yield info.key


def current(store: EngineStore, recipe: str, channel: str) -> Revision | None:
    """The channel's current revision; None when nothing was ever promoted to it."""
    newest = store.objects.first(prefix(recipe, channel))
    if newest is not None and not REVISION_KEY.fullmatch(newest):
        newest = next(keys(store, recipe, channel), None)
    return None if newest is None else _read(store, newest)


def require_current(
    store: EngineStore, recipe: str, channel: str, trust: Trust | None = None
) -> Revision:
    """current(), or StoreMissing with the names of the recipe's channels.

    trust: one of these keys must have signed the revision (SignatureRejected).
    """
    found = current(store, recipe, channel)
    if found is None:
        known = ", ".join(names(store, recipe))
        if not known and recipe not in store.recipes():
            raise store.no_engine(recipe, "channel")
        raise StoreMissing(
            f"channel {recipe}@{channel}: nothing was promoted to it",
            fix=f"channels of {recipe}: {known}" if known else f"enginefarm promote {recipe}",
        )
    if trust is not None:
        require_signed(found, trust)
    return found


def require_signed(revision: Revision, trust: Trust) -> None:
    """Raises: SignatureRejected for a revision that no trusted key signed."""
    name = f"revision {revision.revision} of the channel {revision.recipe}@{revision.channel}"
    statements.require(revision, trust, name)


def names(store: EngineStore, recipe: str) -> tuple[str, ...]:
    return tuple(store.objects.folders(f"{CHANNELS}{recipe}/"))


def _read(store: EngineStore, key: str) -> Revision:
    revision = read(store.objects, key, Revision, STEP_BACK)
    if revision is None:
        raise StoreMissing(f"store: {key} is gone; a channel's revisions are never deleted")
    if revision.key != key:
        raise CorruptBlob(f"store: {key} holds the revision of another channel", fix=STEP_BACK)
    return revision


def manifests_of(store: EngineStore, revision: Revision) -> tuple[Manifest, ...]:
    """The manifests that a revision names. A manifest of a newer version is left out with a note
    in the log if this version can read others.

    Raises: StoreMissing when one is gone; CorruptBlob when one names another engine by now;
    NewerVersion when this version can read none of them.
    """

    def manifest_or_newer(digest: str) -> Manifest | NewerVersion | None:
        try:
            return store.manifest(digest)
        except NewerVersion as error:
            return error

    with ThreadPoolExecutor(READERS) as pool:
        read = pool.map(manifest_or_newer, [one.spec_digest for one in revision.engines])
        found = list(zip(revision.engines, read, strict=True))
    newer = [one for _, one in found if isinstance(one, NewerVersion)]
    if newer and len(newer) == len(found):
        raise newer[0]
    for error in newer:
        LOG.warning("note: left out: %s", error.what)
    name = f"channel {revision.recipe}@{revision.channel}"
    manifests: list[Manifest] = []
    for engine, manifest in found:
        if isinstance(manifest, NewerVersion):
            continue
        if manifest is None:
            raise StoreMissing(
                f"{name}: the manifest of {engine.gpu}/{engine.precision} "
                f"({engine.spec_digest[:12]}) is gone",
                fix="roll back, or promote again: "
                f"enginefarm rollback {revision.recipe} {revision.channel}",
            )
        if manifest.engine != engine.engine:
            raise CorruptBlob(
                f"{name}: {engine.gpu}/{engine.precision} is no longer the engine that was promoted"
            )
        manifests.append(manifest)
    return tuple(manifests)
