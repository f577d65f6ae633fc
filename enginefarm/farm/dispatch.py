"""Starts the runs that build engines on other machines, and waits for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import PrefectHTTPStatusError
from prefect.runtime import flow_run
from prefect.states import Cancelled, Scheduled

from enginefarm.building.engine import Job
from enginefarm.child.cancellation import CANCEL
from enginefarm.documents import written_errors
from enginefarm.documents.manifest import Manifest
from enginefarm.errors import BuildCancelled, EnginefarmError, FarmError
from enginefarm.farm import recovery
from enginefarm.farm.night import RunEnd
from enginefarm.farm.policy import BACKOFF_S
from enginefarm.farm.shares import Lanes
from enginefarm.farm.worker import card as workers
from enginefarm.planning import stages
from enginefarm.planning.plan import Offer
from enginefarm.store.site import whole
from enginefarm.store.statements import is_named

POLL_S = 1.0
WAITING_S = 30.0
"""How often children that have not ended are checked, in seconds."""

PAGE = 200

NIGHT_QUEUE = "night"
"""The queue of the control pool. Prefect assigns each new queue a lower priority than those before
it: runs in the default queue go first."""

STRANDED_S = 300
STRANDED = "No worker of its pool is online any more"
"""A child that waited this long in a pool without online workers is cancelled."""


def online_offers() -> tuple[Offer, ...]:
    """What the online workers can build, read from their cards in the store."""
    return workers.offers(workers.list_workers(stages.here().store))


@contextmanager
def cancel_on_error() -> Generator[None]:
    """When the block raises, also stops the waiting threads and their builders."""
    try:
        yield
    except BaseException:
        CANCEL.set()
        raise


def build_on_pool(job: Job, pool: str) -> tuple[Manifest, bool]:
    """The manifest of a build on that pool's workers, and whether it was already published.

    Blocks until the child run has ended, crashes and their retries included.
    Raises: the child's error; FarmError when the child crashed in every attempt;
    BuildCancelled.
    """
    site = stages.here()
    store = site.store
    published = whole(site, job.recipe, job.spec.digest)
    if published is not None and is_named(store, job.recipe, published):
        return published, True
    with LANES.turn(pool):
        child = _start_child(job, pool)
        ended = CHILDREN.wait(child.id)
    manifest = store.manifest(job.spec.digest)
    if manifest is None:
        raise _failure(job, ended)
    return manifest, False


def _start_child(job: Job, pool: str) -> FlowRun:
    """Starts a child run. A parent that was restarted gets the child of its earlier attempt."""
    try:
        child = started(
            run_deployment,
            f"build-engine/{pool}",
            timeout=0,
            parameters={"job": job.model_dump(mode="json")},
            flow_run_name=f"{job.recipe} {job.spec.label}",
            idempotency_key=f"{flow_run.id}:{job.spec.digest}",
        )
    except PrefectHTTPStatusError as error:
        if error.response.status_code not in (409, 422):
            raise
        raise FarmError(
            f"{job.spec.label}: the deployment build-engine/{pool} refuses this version's jobs",
            why=str(error.response.text)[:300],
            fix="run enginefarm deploy, and use one version of enginefarm on all machines",
        ) from error
    if child.state is not None and child.state.is_final():
        _restart(child)
    return child


def started(start: Callable[..., Any], *arguments: Any, **options: Any) -> FlowRun:
    """Starts a run, and retries while the server is unreachable or busy.

    The idempotency key makes sure that a retry starts no second run.
    Raises: BuildCancelled; the server's refusal, or its last error.
    """
    for pause_s in BACKOFF_S:
        try:
            return cast(FlowRun, start(*arguments, **options))
        except httpx.TransportError:
            pass
        except PrefectHTTPStatusError as error:
            if error.response.status_code < 500:
                raise
        if CANCEL.wait(pause_s):
            raise BuildCancelled("the parent run was cancelled")
    return cast(FlowRun, start(*arguments, **options))


def _restart(child: FlowRun) -> None:
    """Reschedules an ended child, unless it failed and only the crash of its parent led here."""
    with get_client(sync_client=True) as client:
        asked_for = not _restarted_after_crash(client, UUID(str(flow_run.id)))
        if child.state is not None and (asked_for or not child.state.is_failed()):
            client.set_flow_run_state(child.id, Scheduled(), force=True)


def _restarted_after_crash(client: SyncPrefectClient, run_id: UUID) -> bool:
    """Whether this attempt was started by the automation and not by a person."""
    scheduled = [state for state in client.read_flow_run_states(run_id) if state.is_scheduled()]
    return bool(scheduled) and scheduled[-1].message == recovery.RESCHEDULED


def _failure(job: Job, ended: FlowRun) -> EnginefarmError:
    state = ended.state
    label = job.spec.label
    if state is not None and state.message == STRANDED:
        return FarmError(
            f"{label}: the last worker of {ended.work_pool_name} stopped before building it",
            fix=f"start one, or run it again: without a worker of {job.spec.gpu.label} the planner "
            "cross-builds",
        )
    if state is None or state.is_cancelled():
        return BuildCancelled(f"{label}: cancelled")
    text = state.message or "the run gave no reason"
    if state.is_crashed():
        return FarmError(f"{label}: crashed {ended.run_count} times", why=text)
    if state.is_completed():
        return FarmError(f"{label}: its run completed, but the store has no manifest of it")
    return written_errors.of_text((state.name or "").removeprefix("Failed: "), text, FarmError)


class _Children:
    """Polls the server for all children of this process in one thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[UUID, threading.Event] = {}
        self._ended: dict[UUID, FlowRun] = {}
        self._thread: threading.Thread | None = None
        self._looked_at_all = time.monotonic()

    def wait(self, run_id: UUID) -> FlowRun:
        """The run in its last state. Raises: BuildCancelled when this process is to stop."""
        with self._lock:
            event = self._waiting.setdefault(run_id, threading.Event())
            if self._thread is None:
                self._thread = threading.Thread(target=self._poll, name="children", daemon=True)
                self._thread.start()
        while not event.wait(0.2):
            if CANCEL.is_set():
                raise BuildCancelled("the parent run was cancelled")
        return self._ended[run_id]

    def _poll(self) -> None:
        with get_client(sync_client=True) as client:
            while True:
                with self._lock:
                    ids = list(self._waiting)
                    if not ids:
                        self._thread = None
                        return
                for start in range(0, len(ids), PAGE):
                    self._check(client, ids[start : start + PAGE])
                CANCEL.wait(POLL_S)

    def _check(self, client: SyncPrefectClient, ids: list[UUID]) -> None:
        # The server answers with each run's parameters: it is seldom asked for runs that wait.
        types = [*TERMINAL_STATES]
        if time.monotonic() - self._looked_at_all > WAITING_S:
            self._looked_at_all = time.monotonic()
            types.append(StateType.SCHEDULED)
        wanted = FlowRunFilter(
            id=FlowRunFilterId(any_=ids),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=types)),
        )
        try:
            runs = client.read_flow_runs(flow_run_filter=wanted, limit=PAGE)
        except (httpx.HTTPError, PrefectHTTPStatusError):
            return  # the server is away: the children continue, and so does the wait
        for run in runs:
            if recovery.has_ended(run):
                with self._lock:
                    self._ended[run.id] = run
                    self._waiting.pop(run.id).set()
            elif _is_stranded(run):
                client.set_flow_run_state(run.id, Cancelled(message=STRANDED), force=True)


def _is_stranded(run: FlowRun) -> bool:
    state = run.state
    if state is None or not (state.is_scheduled() or state.is_crashed()):
        return False
    if datetime.now(UTC) - state.timestamp < timedelta(seconds=STRANDED_S):
        return False
    try:
        found = workers.list_workers(stages.here().store)
    except EnginefarmError:
        return False
    return not any(row.online and row.card.pool == run.work_pool_name for row in found)


def _runs_at_once(pool: str) -> int:
    """One run for each online worker of the pool, and one that waits."""
    found = workers.list_workers(stages.here().store)
    return 1 + max(1, sum(row.online and row.card.pool == pool for row in found))


CHILDREN = _Children()
LANES = Lanes(_runs_at_once)


def build_recipes(recipes: Mapping[Path, str]) -> dict[Path, RunEnd]:
    """Runs build-model for each recipe, and waits. Runs that people start go first.

    recipes: the parameter of build-model -> the recipe's name, which names the waiting run.
    """
    children = {
        file: started(
            run_deployment,
            "build-model/build-model",
            timeout=0,
            parameters={"recipe": str(file)},
            work_queue_name=NIGHT_QUEUE,
            flow_run_name=name,
            idempotency_key=f"{flow_run.id}:{file}",
        )
        for file, name in recipes.items()
    }
    ended: dict[Path, RunEnd] = {}
    for file, child in children.items():
        state = CHILDREN.wait(child.id).state
        assert state is not None
        why = "" if state.is_completed() else state.message or ""
        name = state.name or state.type.value
        ended[file] = RunEnd(name, why, state.is_completed(), str(child.id))
    return ended
