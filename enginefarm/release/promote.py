"""Moves a channel to other engines, through the gates, and back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from enginefarm.documents.manifest import Manifest
from enginefarm.errors import StoreConflict, StoreMissing, UsageError, command
from enginefarm.release.gates import GateContext, guard, require_passed
from enginefarm.settings import user
from enginefarm.store import budgets, layout, signing, statements
from enginefarm.store.channels import (
    LAST_REVISION,
    ChannelEngine,
    GateResult,
    Revision,
    current,
    history,
    manifests_of,
    named,
    require_current,
    require_signed,
)
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.signing import Trust
from enginefarm.tables.rules import recorded


class Approval(NamedTuple):
    """Who approved a move, why, and the results of further checks, for the channel's log."""

    by: str
    why: str
    gates: tuple[GateResult, ...] = ()


def newest_engines(store: EngineStore, recipe: str) -> tuple[Manifest, ...]:
    """The newest engine of each GPU and precision that was built from the recipe's newest graph.

    Raises: StoreMissing.
    """
    found = sorted(store.manifests(recipe), key=lambda one: (one.created_at, one.spec_digest))
    if not found:
        raise store.no_engine(recipe, "promote")
    graph = found[-1].spec.onnx_digest
    newest = {(one.gpu, one.precision): one for one in found if one.spec.onnx_digest == graph}
    return tuple(newest[key] for key in sorted(newest))


def candidates(
    store: EngineStore, recipe: str, source: str | None, trust: Trust | None = None
) -> tuple[Manifest, ...]:
    """What would be promoted: another channel's engines, or the newest ones."""
    if source is None:
        return newest_engines(store, recipe)
    named(source, "channel")
    return manifests_of(store, require_current(store, recipe, source, trust))


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
        precision. approve: called between the gates and the move; it may wait for a person, and
        raises to stop the move. The gates run again after it.
    Raises: GateError with every refusal, StoreConflict when somebody else moved the channel
    meanwhile, StoreMissing.
    """
    name = channel_name(recipe, channel)
    if source is not None:
        named(source, "channel")
    before = current(store, recipe, channel)
    rule = recorded(store, recipe)
    chosen, left_out, speed = guard(store, candidates(store, recipe, source, trust), rule)
    context = GateContext(
        store=store,
        recipe=recipe,
        production=_existing_manifests(store, before),
        allow_pending=allow_pending,
        allow_missing=allow_missing,
        trust=trust,
        regression=rule,
        budgets=budgets.recorded(store, recipe),
        left_out=left_out,
    )
    results = (*require_passed(name, chosen, context), *speed)
    if approve is not None:
        by, why, more = approve(chosen, results)
        chosen = tuple(store.manifest(one.spec_digest) or one for one in chosen)
        results = (*require_passed(name, chosen, context), *speed, *more)
    moved = _move(
        store,
        Revision(
            recipe=recipe,
            channel=channel,
            revision=_after(before),
            action="promote",
            engines=tuple(map(ChannelEngine.of, chosen)),
            gates=results,
            source=source or "newest",
            by=by or user(),
            why=why,
            at=datetime.now(UTC),
        ),
    )
    return _still_there(store, moved)


def rollback(
    store: EngineStore,
    recipe: str,
    channel: str,
    *,
    to: int | None = None,
    why: str = "",
    by: str | None = None,
    trust: Trust | None = None,
) -> Revision:
    """Moves a channel back: to a revision, or to the last one with other engines.

    It is a new revision: the log only grows. Gates are not run again, but the engines must still
    exist. A revision that cannot be read is skipped only if `to` names another one.
    trust: if given, one of these keys must have signed the revision to go back to.
    Raises: StoreMissing, StoreConflict, SignatureRejected.
    """
    channel_name(recipe, channel)
    now = require_current(store, recipe, channel)
    target = next(
        (
            one
            for one in history(store, recipe, channel, whole=to is None)
            if (one.revision == to if to is not None else one.engines != now.engines)
        ),
        None,
    )
    if target is None:
        wanted = f"it has no revision {to}" if to is not None else "it has no earlier revision"
        raise StoreMissing(
            f"rollback {recipe}@{channel}: {wanted}",
            fix=f"enginefarm channel {recipe} {channel} lists its revisions",
        )
    if trust is not None:
        require_signed(target, trust)
    for manifest in manifests_of(store, target):
        if not store.has_blob(manifest.engine):
            raise StoreMissing(
                f"rollback {recipe}@{channel}: the bytes of {manifest.spec.label} of revision "
                f"{target.revision} are gone"
            )
    entry = {"revision": _after(now), "action": "rollback", "by": by or user(), "why": why}
    entry |= {"source": f"revision {target.revision}", "at": datetime.now(UTC)}
    return _still_there(store, _move(store, target.model_copy(update=entry)))


def record_refusal(
    store: EngineStore,
    recipe: str,
    channel: str,
    *,
    source: str,
    gates: tuple[GateResult, ...],
    why: str,
) -> Revision | None:
    """Records in the channel's log that a move was tried and refused: a revision with the same
    engines and the gates' results. Returns None, and records nothing, for a channel without log.

    Raises: StoreConflict.
    """
    now = current(store, recipe, channel)
    if now is None:
        return None
    entry = {"revision": _after(now), "action": "rollback", "source": source}
    entry |= {"gates": gates, "by": user(), "why": why[:2000], "at": datetime.now(UTC)}
    return _move(store, now.model_copy(update=entry))


def channel_name(recipe: str, channel: str) -> str:
    """`recipe@channel`. Raises: UsageError for what cannot be a name."""
    for what, name in (("recipe", recipe), ("channel", channel)):
        if named(name, what) != name.lower():
            raise UsageError(
                f"{name!r} cannot be the name of a {what}", why="a name has no capital letters"
            )
    return f"{recipe}@{channel}"


def _after(now: Revision | None) -> int:
    """The number of the next revision. Raises: StoreConflict after the last that there can be."""
    if now is None:
        return 1
    if now.revision == LAST_REVISION:
        raise StoreConflict(
            f"channel {now.recipe}@{now.channel}: no revision can follow {LAST_REVISION:,}",
            why="nobody moves a channel that often: somebody wrote that revision to the store",
            fix=f"delete the object {now.key}",
        )
    return now.revision + 1


def _move(store: EngineStore, revision: Revision) -> Revision:
    """Creates the revision, signed where this process has a signing key."""
    signer = signing.signer()
    unsigned = revision.model_copy(update={"signatures": ()})
    revision = unsigned if signer is None else statements.sign(unsigned, signer)
    if store.objects.put_if_absent(revision.key, revision.canonical_json()) is None:
        winner = current(store, revision.recipe, revision.channel)
        raise StoreConflict(
            f"channel {revision.recipe}@{revision.channel}: somebody else moved it first",
            why=f"{winner.by} at {winner.at:%H:%M:%S}: {winner.why}" if winner else "",
            fix="look at it, and try again",
        )
    return revision


def _still_there(store: EngineStore, moved: Revision) -> Revision:
    """Looks for the engines after the channel names them: gc keeps what a channel names, and
    may have deleted them just before. Raises: StoreMissing."""
    gone = [
        f"{one.gpu}/{one.precision} ({one.spec_digest[:12]})"
        for one in moved.engines
        if store.objects.head(layout.manifest(one.spec_digest)) is None
        or not store.has_blob(one.engine)
    ]
    if gone:
        name = f"{moved.recipe}@{moved.channel}"
        raise StoreMissing(
            f"{command(moved.action)} {name}: {', '.join(gone)} was deleted while the channel "
            "moved",
            why=f"gc found it in no channel; revision {moved.revision} names it now",
            fix=f"enginefarm rollback {moved.recipe} {moved.channel}, then build the recipe again",
        )
    return moved


def _existing_manifests(store: EngineStore, revision: Revision | None) -> tuple[Manifest, ...]:
    engines = revision.engines if revision else ()
    found = (store.manifest(engine.spec_digest) for engine in engines)
    return tuple(one for one in found if one is not None)
