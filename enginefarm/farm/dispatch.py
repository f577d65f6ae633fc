"""An engine built by a run on another machine: started, linked to its parent, waited for."""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import PrefectHTTPStatusError
from prefect.runtime import flow_run
from prefect.states import Cancelled, Scheduled

from enginefarm.building.engine import Job
from enginefarm.child.cancellation import CANCEL
from enginefarm.documents import written_errors
from enginefarm.documents.manifest import Manifest
from enginefarm.documents.recipe import Recipe
from enginefarm.errors import BuildCancelled, EnginefarmError, FarmError
from enginefarm.farm import recovery
from enginefarm.farm.night import RunEnd
from enginefarm.farm.policy import BACKOFF_S
from enginefarm.farm.server import connection as farm
from enginefarm.farm.server import deployments
from enginefarm.farm.shares import Lanes
from enginefarm.farm.worker import card as workers
from enginefarm.planning import stages
from enginefarm.planning.outcome import Outcome
from enginefarm.planning.plan import Offer
from enginefarm.store.site import whole
from enginefarm.store.statements import is_named

POLL_S = 1.0
PAGE = 200

NIGHT_QUEUE = "night"
"""The queue of the control pool. Prefect assigns each new queue a lower priority than those before
it: runs in the default queue go first."""

STRANDED_S = 300
STRANDED = "No worker of its pool is online any more"
"""A child that waited so long in a pool whose workers have all gone is given up."""


def online_offers() -> tuple[Offer, ...]:
    """What the workers that are online can build, from their cards in the store."""
    return workers.offers(workers.listed(stages.here().store))


@contextmanager
def stopped_at_once() -> Generator[None]:
    """Whatever ends the block early also ends the threads that wait, and their builders."""
    try:
        yield
    except BaseException:
        CANCEL.set()
        raise


def build_on_pool(job: Job, pool: str) -> tuple[Manifest, bool]:
    """The manifest of a build on that pool's workers, and whether it was there already.

    Blocks until the child run has ended, crashes and their retries included.
    Raises: what the child raised, by the kind that its state is named after; FarmError
    when it crashed for good, BuildCancelled.
    """
    site = stages.here()
    store = site.store
    published = whole(site, job.recipe, job.spec.digest)
    if published is not None and is_named(store, job.recipe, published):
        return published, True
    with LANES.turn(pool):
        child = _start(job, pool)
        ended = CHILDREN.wait(child.id)
    manifest = store.manifest(job.spec.digest)
    if manifest is None:
        raise _why(job, ended)
    return manifest, False


def _start(job: Job, pool: str) -> FlowRun:
    """A child run, or, for a parent that starts again, the one it had started before."""
    try:
        child = _started(
            f"build-engine/{pool}",
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
            fix="enginefarm deploy, and workers of one version",
        ) from error
    if child.state is not None and child.state.is_final():
        _again(child)
    return child


def _started(deployment: str, **options: Any) -> FlowRun:
    """A run of the deployment. A server that is away, or too busy to answer, is asked again.

    Asking twice starts one run: each has an idempotency key.
    Raises: BuildCancelled; what the server answers when it refuses, or is asked for the last time.
    """
    for pause_s in BACKOFF_S:
        try:
            return cast(FlowRun, run_deployment(deployment, timeout=0, **options))
        except httpx.TransportError:
            pass
        except PrefectHTTPStatusError as error:
            if error.response.status_code < 500:
                raise
        if CANCEL.wait(pause_s):
            raise BuildCancelled("the parent run was cancelled")
    return cast(FlowRun, run_deployment(deployment, timeout=0, **options))


def _again(child: FlowRun) -> None:
    """Sends an ended child back to its queue: unless it failed, and the parent only crashed."""
    with get_client(sync_client=True) as client:
        asked_for = not _after_crash(client, UUID(str(flow_run.id)))
        if child.state is not None and (asked_for or not child.state.is_failed()):
            client.set_flow_run_state(child.id, Scheduled(), force=True)


def _after_crash(client: SyncPrefectClient, run_id: UUID) -> bool:
    """Whether this attempt was begun by the automation, and not by a person."""
    scheduled = [state for state in client.read_flow_run_states(run_id) if state.is_scheduled()]
    return bool(scheduled) and scheduled[-1].message == recovery.RESCHEDULED


def _why(job: Job, ended: FlowRun) -> EnginefarmError:
    state = ended.state
    label = job.spec.label
    if state is not None and state.message == STRANDED:
        return FarmError(
            f"{label}: the last worker of {ended.work_pool_name} went before it was built",
            fix=f"start one, or run again: without a worker of {job.spec.gpu.label} the planner "
            "cross-builds",
        )
    if state is None or state.is_cancelled():
        return BuildCancelled(f"{label}: cancelled")
    text = state.message or "no reason given"
    if state.is_crashed():
        return FarmError(f"{label}: crashed {ended.run_count} times", why=text)
    if state.is_completed():
        return FarmError(f"{label}: its run completed, and its manifest is not in the store")
    return written_errors.of_text((state.name or "").removeprefix("Failed: "), text, FarmError)


class _Children:
    """One poll of the server for every child that is waited for, whoever waits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[UUID, threading.Event] = {}
        self._ended: dict[UUID, FlowRun] = {}
        self._thread: threading.Thread | None = None

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
                    self._look(client, ids[start : start + PAGE])
                CANCEL.wait(POLL_S)

    def _look(self, client: SyncPrefectClient, ids: list[UUID]) -> None:
        try:
            runs = client.read_flow_runs(
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=ids)), limit=PAGE
            )
        except (httpx.HTTPError, PrefectHTTPStatusError):
            return  # the server is away: the children go on, and so does the wait
        for run in runs:
            if _ended(run):
                with self._lock:
                    self._ended[run.id] = run
                    self._waiting.pop(run.id).set()
            elif _stranded(run):
                client.set_flow_run_state(run.id, Cancelled(message=STRANDED), force=True)


def _ended(run: FlowRun) -> bool:
    """Final, and not about to be sent back to its queue."""
    if run.state is None or not run.state.is_final():
        return False
    return not (run.state.is_crashed() and recovery.sent_back(run))


def _stranded(run: FlowRun) -> bool:
    state = run.state
    if state is None or not (state.is_scheduled() or state.is_crashed()):
        return False
    if datetime.now(UTC) - state.timestamp < timedelta(seconds=STRANDED_S):
        return False
    try:
        found = workers.listed(stages.here().store)
    except EnginefarmError:
        return False
    return not any(row.online and row.card.pool == run.work_pool_name for row in found)


def _width(pool: str) -> int:
    """One run for each worker of the pool that is online, and one that waits."""
    found = workers.listed(stages.here().store)
    return 1 + max(1, sum(row.online and row.card.pool == pool for row in found))


CHILDREN = _Children()
LANES = Lanes(_width)


def build_recipes(recipes: Mapping[Path, str]) -> dict[Path, RunEnd]:
    """A build-model run for each recipe, waited for. Runs that people ask for come before them.

    recipes: what build-model takes -> the recipe's name, which its run has while it waits.
    """
    started = {
        file: _started(
            "build-model/build-model",
            parameters={"recipe": str(file)},
            work_queue_name=NIGHT_QUEUE,
            flow_run_name=name,
            idempotency_key=f"{flow_run.id}:{file}",
        )
        for file, name in recipes.items()
    }
    ended: dict[Path, RunEnd] = {}
    for file, child in started.items():
        state = CHILDREN.wait(child.id).state
        assert state is not None
        why = "" if state.is_completed() else state.message or ""
        name = state.name or state.type.value
        ended[file] = RunEnd(name, why, state.is_completed(), str(child.id))
    return ended


def leave_benchmarks(recipe: Recipe, outcomes: Sequence[Outcome]) -> None:
    """For each engine not run on its GPU yet, a run that waits for a worker that has one.

    One a spec, however often it is asked for; one that failed or was withdrawn waits again.
    """
    pending = [row for row in outcomes if row.on_device == "pending"]
    with get_client(sync_client=True) as client:
        for pool in sorted({farm.pool_of(row.gpu) for row in pending}):
            deployments.ensure_applied(client, "benchmark-engine", pool)
    for row in pending:
        left = _started(
            f"benchmark-engine/{farm.pool_of(row.gpu)}",
            parameters={
                "spec_digest": row.spec_digest,
                "budget": recipe.budget(row.precision).model_dump(mode="json"),
                "class_scores": list(recipe.verification.class_scores),
            },
            flow_run_name=f"{row.recipe} {row.label}",
            as_subflow=False,
            idempotency_key=f"benchmark:{row.spec_digest}",
        )
        _ask_again(left)


def _ask_again(left: FlowRun) -> None:
    """A benchmark that was withdrawn, or spoiled by a worker that should not have taken it."""
    state = left.state
    if state is None or not state.is_final() or state.is_completed():
        return
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(left.id, Scheduled(), force=True)
