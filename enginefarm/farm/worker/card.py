"""What each worker offers, written where the planner reads it: `workers/` in the store.

A worker writes its card when it starts and again every HEARTBEAT_S. The object's age is the
heartbeat, so one listing shows which workers are online. The card of a dead worker grows old and
is then ignored.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import Field

from enginefarm.documents.gpus import by_nvml_name, gpu
from enginefarm.documents.spec import BuildSpec, ToolchainId
from enginefarm.errors import (
    CorruptBlob,
    HostError,
    NewerVersion,
    StoreError,
    StoreUnavailable,
    ToolchainError,
    WorkerMismatch,
)
from enginefarm.host.detect import first_gpu
from enginefarm.planning import plan
from enginefarm.schema import Frozen, Moment, Name
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.object_info import ObjectInfo
from enginefarm.store.reading import or_left_out, read
from enginefarm.toolchains import TOOLCHAINS, installed, toolchain

PREFIX = "workers/"
REPAIR = "delete it; a worker that runs writes its own card again"
HEARTBEAT_S = 15.0
SILENT_S = 60.0
"""A worker with an older card is offline. The clocks of farm and store may differ by half of
this."""

FIRST_CARD_S = 60.0
"""How long a starting worker waits for a store that does not answer."""

CONTROL_POOL = "control"

Role = Literal["gpu", "cross", "cpu", "control"]
"""gpu: has the GPU. cross: stands in for a label, without one. cpu: cross-builds for any
label. control: runs the steps that all engines of a recipe share."""


class Card(Frozen):
    """One worker, as it describes itself."""

    name: Name
    role: Role
    pool: Name
    gpu: Name | None = None
    gpu_name: str | None = Field(None, description="As NVML reports it.")
    driver: str | None = None
    toolchains: tuple[ToolchainId, ...] = ()
    host: str
    pid: int
    started_at: Moment


class ListedWorker(Frozen):
    """A card from the store, and when it was last written."""

    card: Card
    seen_at: datetime
    online: bool


def check_device(label: str, *, cross: bool) -> tuple[str | None, str | None]:
    """NVML's name and driver of the GPU that a worker of that label has; Nones for a cross one.

    Raises: GpuError for an unknown label; HostError where there is no driver or GPU;
    WorkerMismatch when the GPU is another one than the label says.
    """
    row = gpu(label)
    if cross:
        return None, None
    found = first_gpu()
    if found is None:
        raise HostError(
            f"worker --gpu {label}: this machine has no NVIDIA GPU",
            why="NVML is not installed, or finds no GPU",
            fix=f"install the driver; or cross-build without a GPU: worker --gpu {label} --cross",
        )
    if not row.matches(found.name):
        actual = by_nvml_name(found.name)
        raise WorkerMismatch(
            f"worker --gpu {label}: this machine's GPU is {found.name!r}",
            why=f"its label in gpus.toml is {actual.label}"
            if actual
            else "no row of gpus.toml matches that name",
            fix=f"start it with --gpu {actual.label}"
            if actual
            else "add a row for it to gpus.toml",
        )
    return found.name, found.driver


def check_toolchains(role: Role) -> tuple[ToolchainId, ...]:
    """The toolchains installed here that a worker of that role can build with.

    Raises: ToolchainError when a worker that builds has none.
    """
    if role == "control":
        return ()
    found = installed(cross_only=role != "gpu")
    if not found:
        raise ToolchainError(
            "worker: no toolchain that can build here is installed",
            why=f"looked for {', '.join(TOOLCHAINS)}",
            fix="pip install 'enginefarm[farm]' cross-builds; 'enginefarm[gpu]' builds natively",
        )
    return found


def check_spec(spec: BuildSpec) -> None:
    """Refuses a spec of another toolchain build than this machine has.

    Raises: ToolchainError. Plans of two builds are two engines: what is recorded under a
    spec must have been built by it.
    """
    wanted = spec.toolchain
    here = toolchain(wanted.name).identity()
    if here != wanted:
        raise ToolchainError(
            f"toolchain: {spec.label} must be built with {wanted.name} {wanted.build} "
            f"({wanted.os}/{wanted.arch}), and this worker has {here.build} "
            f"({here.os}/{here.arch})",
            fix="install the same build of the toolchain on every worker of a label",
        )


def key(card: Card) -> str:
    return f"{PREFIX}{card.pool}/{card.name}.json"


def write(store: EngineStore, card: Card) -> None:
    store.objects.put(key(card), card.canonical_json())


def remove(store: EngineStore, card: Card) -> None:
    store.objects.delete(key(card))


def list_workers(store: EngineStore, *, now: datetime | None = None) -> tuple[ListedWorker, ...]:
    """Every card, by pool and name. One that this version cannot read, or that lies under another
    worker's name, is left out with a note."""
    moment = now or datetime.now(UTC)
    infos: list[ObjectInfo] = list(store.objects.list(PREFIX))

    def read(info: ObjectInfo) -> Card | None:
        return or_left_out(lambda: _card(store, info.key), CorruptBlob, NewerVersion)

    with ThreadPoolExecutor(8) as pool:
        cards = list(pool.map(read, infos))
    return tuple(
        ListedWorker(
            card=card,
            seen_at=info.modified,
            online=moment - info.modified < timedelta(seconds=SILENT_S),
        )
        for info, card in zip(infos, cards, strict=True)
        if card is not None
    )


def _card(store: EngineStore, name: str) -> Card | None:
    card = read(store.objects, name, Card, REPAIR)
    if card is not None and key(card) != name:
        raise CorruptBlob(f"store: {name} holds the card of another worker", fix=REPAIR)
    return card


def offers(workers: Sequence[ListedWorker]) -> tuple[plan.Offer, ...]:
    """What the planner counts on: the online workers that build, those with a GPU first."""
    order: dict[Role, int] = {"gpu": 0, "cross": 1, "cpu": 2}
    cards = [row.card for row in workers if row.online and row.card.role in order]
    return tuple(
        plan.Offer(gpu=card.gpu, pool=card.pool, toolchains=card.toolchains)
        for card in sorted(cards, key=lambda card: (order[card.role], card.name))
    )


def _write_when_store_is_up(store: EngineStore, card: Card) -> None:
    """Writes the card, waiting up to FIRST_CARD_S for a store that is still starting."""
    deadline = time.monotonic() + FIRST_CARD_S
    while True:
        try:
            write(store, card)
            return
        except StoreUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


@contextmanager
def registered(store: EngineStore, card: Card) -> Generator[None]:
    """Keeps the card fresh while the block runs, and takes it away at the end.

    Raises: StoreError when the store refuses the first writing; a store that is away
    later only makes this worker look offline until it is back.
    """
    _write_when_store_is_up(store, card)
    stopped = threading.Event()

    def beat() -> None:
        while not stopped.wait(HEARTBEAT_S):
            try:
                write(store, card)
            except StoreError:
                continue

    thread = threading.Thread(target=beat, name="worker-card", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join(timeout=HEARTBEAT_S)
        with suppress(StoreError):  # it grows old by itself
            remove(store, card)
