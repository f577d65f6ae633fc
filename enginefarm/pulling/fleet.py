"""The fleet: which host runs which engine of which channel, as the hosts themselves report.

fleet/<recipe>/<channel>/<host>/<gpu>-<precision>.json    HostState, written by `pull --watch`

A host lags when the channel does not name the engine that it runs. States contain only the first
digits of a spec digest, because gc keeps every engine whose whole digest a document contains.
docs/decisions/0194.
"""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Literal

from pydantic import Field

from enginefarm.documents.host import Host
from enginefarm.documents.manifest import Manifest
from enginefarm.errors import CorruptBlob, NewerVersion, StoreMissing, UsageError
from enginefarm.host.detect import detect
from enginefarm.names import PrecisionName
from enginefarm.pulling.select import select
from enginefarm.schema import Frozen, Moment, Name
from enginefarm.store import channels, open_store
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.reading import or_left_out, read

PREFIX = "fleet/"
KEY = re.compile(r"fleet/([^/]+)/([^/]+)/[^/]+/[^/]+\.json")
SHORT = 16
REPORTED_EVERY_S = 24 * 3600
"""A host that is gone shows by the date of its last report."""
REPAIR = "enginefarm fsck --repair removes it; its host writes it again within a day"


class HostState(Frozen):
    """What one host runs. precision: the requested one; None: the best that fits."""

    schema_version: int = 1
    name: Name
    recipe: Name
    channel: Name
    revision: int | None = Field(default=None, description="The channel's revision at the report.")
    runs: str = Field(description="t4/fp16")
    spec: str = Field(max_length=SHORT)
    host: Host
    precision: PrecisionName | None = None
    since: Moment = Field(description="When it was written, by the host's clock.")

    @property
    def key(self) -> str:
        """A host that follows a channel for two GPUs, or in two precisions, has two states."""
        follows = f"{self.host.gpu or 'unknown'}-{self.precision or 'any'}"
        return f"{PREFIX}{self.recipe}/{self.channel}/{self.name}/{follows}.json"


Verdict = Literal["current", "lags", "left", "unknown"]


class HostStatus(Frozen):
    """A host compared with its channel. heard: its last report, by the store's clock. gets: what it
    would switch to; None: it would not switch.

    The verdict is "left" if nothing is promoted to the channel, and "unknown" if the channel cannot
    be read.
    """

    state: HostState
    heard: Moment
    verdict: Verdict
    words: str
    gets: str | None = None


def report(
    store: EngineStore,
    name: str,
    channel: str,
    manifest: Manifest,
    host: Host,
    machine: str,
    precision: PrecisionName | None = None,
) -> HostState:
    """Writes what this host runs now. name: the recipe that was pulled.

    Raises: StoreDenied for a key that is not allowed to write below fleet/.
    """
    now = channels.current(store, name, channel)
    named = now is not None and _names(now, manifest.spec_digest[:SHORT])
    state = HostState(
        name=host_name(machine),
        recipe=name,
        channel=channel,
        revision=now.revision if now is not None and named else None,
        runs=manifest.spec.label,
        spec=manifest.spec_digest[:SHORT],
        host=host.model_copy(update={"plugins": None}),
        precision=precision,
        since=datetime.now(UTC),
    )
    store.objects.put(state.key, state.canonical_json())
    return state


class Reporter:
    """Reports what this host runs: at first, when that has changed, and once a day."""

    def __init__(self, name: str, channel: str, gpu: str, precision: PrecisionName | None) -> None:
        self.follows = name, channel
        self.gpu = gpu
        self.precision: PrecisionName | None = precision
        self.reported = "", 0.0

    def __call__(self, manifest: Manifest) -> None:
        """Call it at each look. Raises: what the store raises; the next call tries again."""
        spec, at = self.reported
        if spec == manifest.spec_digest and time.monotonic() < at + REPORTED_EVERY_S:
            return
        host = detect(self.gpu)
        report(open_store(), *self.follows, manifest, host, platform.node(), self.precision)
        self.reported = manifest.spec_digest, time.monotonic()


def host_name(machine: str) -> str:
    """The name of a machine as one segment of a key."""
    kept = re.sub(r"[^a-z0-9._-]", "-", machine.lower()).strip("-._")[:64].strip("-._")
    return kept or "unknown"


def statuses(
    store: EngineStore, recipe: str | None = None, channel: str | None = None
) -> tuple[HostStatus, ...]:
    """Every host by recipe, channel and host, compared with its channel's current revision.

    A state that this version cannot read is left out with a note in the log. A channel that cannot
    be read does not hide the hosts of others.
    """
    revisions: dict[tuple[str, str], channels.Revision | CorruptBlob | NewerVersion | None] = {}
    judged: list[HostStatus] = []
    for info in store.objects.list(PREFIX if recipe is None else f"{PREFIX}{recipe}/"):
        if not (named := KEY.fullmatch(info.key)) or channel not in (None, named[2]):
            continue
        state = or_left_out(partial(state_of, store, info.key), CorruptBlob, NewerVersion)
        if state is None:
            continue
        key = (state.recipe, state.channel)
        if key not in revisions:
            try:
                revisions[key] = channels.current(store, *key)
            except (CorruptBlob, NewerVersion) as error:
                revisions[key] = error
        verdict, words = _compared(state, revisions[key])
        judged.append(HostStatus(state=state, heard=info.modified, verdict=verdict, words=words))
    return tuple(judged)


def forget(store: EngineStore, recipe: str, channel: str, machine: str) -> None:
    """Removes every state of a host that is gone. One that still runs reports again within a day.

    Raises: StoreMissing if no such host has reported.
    """
    keys = [
        one.key for one in store.objects.list(f"{PREFIX}{recipe}/{channel}/{host_name(machine)}/")
    ]
    if not keys:
        raise StoreMissing(
            f"fleet: no host {machine!r} has reported that it follows {recipe}@{channel}",
            fix=f"`enginefarm fleet {recipe}@{channel}` lists those that have",
        )
    for key in keys:
        store.objects.delete(key)


def state_of(store: EngineStore, key: str) -> HostState | None:
    """The last state of a host; None if it was removed. Raises: CorruptBlob, NewerVersion."""
    state = read(store.objects, key, HostState, REPAIR)
    if state is not None and state.key != key:
        raise CorruptBlob(f"store: {key} holds the state of another host", fix=REPAIR)
    return state


def _compared(
    state: HostState, now: channels.Revision | CorruptBlob | NewerVersion | None
) -> tuple[Verdict, str]:
    if isinstance(now, CorruptBlob | NewerVersion):
        return "unknown", now.what
    if now is None:
        return "left", "nothing is promoted to the channel"
    if _names(now, state.spec):
        return "current", f"revision {now.revision}"
    return "lags", f"the channel is at revision {now.revision}, which does not name its engine"


def _names(revision: channels.Revision, spec: str) -> bool:
    return any(engine.spec_digest.startswith(spec) for engine in revision.engines)


def reached(found: Sequence[HostStatus], engines: Sequence[Manifest]) -> tuple[HostStatus, ...]:
    """What each host would switch to if the channel named these engines.

    The rules are those of `pull`, applied to what each host reported. Raises: UsageError when no
    host follows the channel.
    """
    if not found:
        raise UsageError(
            "fleet: no host has reported that it follows this channel",
            fix="hosts report it with `enginefarm pull NAME@CHANNEL --watch`",
        )
    judged: list[HostStatus] = []
    for one in found:
        chosen = select(engines, one.state.host, one.state.precision).candidates
        if not chosen:
            gets = "nothing: no engine fits"
        elif chosen[0].manifest.spec_digest.startswith(one.state.spec):
            gets = None
        else:
            gets = f"{chosen[0].manifest.spec.label} {chosen[0].manifest.spec_digest[:12]}"
        judged.append(one.model_copy(update={"gets": gets}))
    return tuple(judged)
