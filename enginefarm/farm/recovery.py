"""Finds runs that died silently and crashes that no automation answered, every 15 s.

The server's automations react to a crash immediately, but their events and actions wait in its
memory, and are lost when it is killed. The control worker polls the state of each run, which is in
the server's database.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.logging import get_logger
from prefect.states import Crashed, Failed, Scheduled

from enginefarm.errors import EnginefarmError
from enginefarm.farm import housekeeping, run_form
from enginefarm.farm.server import connection as farm
from enginefarm.farm.worker.card import CONTROL_POOL
from enginefarm.planning import stages
from enginefarm.planning.plan import CROSS_POOL
from enginefarm.store.engine_store import EngineStore

Look = Callable[[], None]

MAX_ATTEMPTS = 3
RESCHEDULED = "Rescheduled after a crash"
"""The message that the automations in deployments/automations.yaml also write."""

MAX_LOST = 10
"""A run that crashed this often before it started is failed: something kills it every time."""

SWEEP_S = 15.0
UNANSWERED_S = 10
"""An automation that received the event of a crash has answered by then."""

SILENT_S = 75
ANSWERED_S = 45
"""A run sends a heartbeat every 30 s. It counts as silent only when the server was up to hear
it."""

FORGOTTEN_S = 24 * 3600
"""Older crashes are left alone: nobody waits for those runs."""

PAGE = 200


@contextmanager
def watching() -> Generator[None]:
    """Looks for lost runs and cleans up, every SWEEP_S, while the block runs.

    Housekeeping asks the store and has its own thread, so that an unreachable store does not
    delay the search for lost runs.
    """
    stopped = threading.Event()
    for name, look in (("recovery", _look_for_lost_runs), ("housekeeping", _keep_house)):
        threading.Thread(target=_repeat, name=name, args=(look, stopped), daemon=True).start()
    try:
        yield
    finally:
        stopped.set()


def _repeat(look: Callable[[SyncPrefectClient], Look], stopped: threading.Event) -> None:
    """Calls `look` every SWEEP_S; an exception is logged, and the loop continues."""
    with get_client(sync_client=True) as client:
        once = look(client)
        while True:
            try:
                once()
            except Exception:
                get_logger("recovery").exception(
                    "%s: tried again in %d s", threading.current_thread().name, SWEEP_S
                )
            if stopped.wait(SWEEP_S):
                return


def _look_for_lost_runs(client: SyncPrefectClient) -> Look:
    sweep = Sweep()
    return lambda: sweep.once(client)


def _keep_house(client: SyncPrefectClient) -> Look:
    """Updates the choices of the run form, and cleans up once an hour."""
    kept = time.monotonic()

    def once() -> None:
        nonlocal kept
        _try("run form", run_form.refresh, client)
        if time.monotonic() - kept > housekeeping.EVERY_S:
            kept = time.monotonic()
            done = _try("housekeeping", housekeeping.clean_up, client)
            if done:
                get_logger("recovery").info(
                    "housekeeping: %d benchmarks, cards and logs are gone", done
                )

    return once


def _try(
    what: str, step: Callable[[SyncPrefectClient, EngineStore], int], client: SyncPrefectClient
) -> int:
    try:
        return step(client, stages.here().store)
    except (httpx.HTTPError, PrefectHTTPStatusError, EnginefarmError, OSError) as error:
        get_logger("recovery").warning("%s: %s; tried again later", what, error)
        return 0


class Sweep:
    """One poll of the server, and since when the server has been answering."""

    def __init__(self) -> None:
        self._answered_since: float | None = None

    def once(self, client: SyncPrefectClient) -> None:
        try:
            self._look(client)
        except (httpx.HTTPError, PrefectHTTPStatusError):
            self._answered_since = None

    def _look(self, client: SyncPrefectClient) -> None:
        pools = [CONTROL_POOL, CROSS_POOL, *farm.gpu_pools(client)]
        for run in _runs(client, pools, StateType.CRASHED):
            if UNANSWERED_S < _age_s(run) < FORGOTTEN_S and will_retry(run):
                _reschedule(client, run)
        now = time.monotonic()
        self._answered_since = self._answered_since or now
        if now - self._answered_since < ANSWERED_S:
            return
        for run in _runs(client, pools, StateType.PENDING, StateType.RUNNING):
            if _age_s(run) > SILENT_S and not _has_recent_event(client, run):
                _mark_crashed(client, run)


def will_retry(run: FlowRun) -> bool:
    """Whether a crash of this run is answered by another attempt."""
    return run.run_count < MAX_ATTEMPTS


def has_ended(run: FlowRun) -> bool:
    """Whether its state is final, and no attempt follows."""
    state = run.state
    if state is None or not state.is_final():
        return False
    return not (state.is_crashed() and will_retry(run))


def _runs(client: SyncPrefectClient, pools: list[str], *types: StateType) -> list[FlowRun]:
    return client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types)))
        ),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=pools)),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=PAGE,
    )


def _age_s(run: FlowRun) -> float:
    assert run.state is not None
    return (datetime.now(UTC) - run.state.timestamp).total_seconds()


def _has_recent_event(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Whether the server received an event of the run in the last SILENT_S."""
    since = datetime.now(UTC) - timedelta(seconds=SILENT_S)
    wanted = {
        "occurred": {"since": since.isoformat()},
        "resource": {"id": [f"prefect.flow-run.{run.id}"]},
    }
    answer = client.request("POST", "/events/filter", json={"filter": wanted, "limit": 1})
    return bool(answer.json()["events"])


def _mark_crashed(client: SyncPrefectClient, run: FlowRun) -> None:
    if _is_unchanged(client, run):
        get_logger("recovery").warning("%s: no sign of life for %d s", run.name, SILENT_S)
        client.set_flow_run_state(run.id, Crashed(message=f"No sign of life for {SILENT_S} s"))


def _reschedule(client: SyncPrefectClient, run: FlowRun) -> None:
    crashes = sum(state.is_crashed() for state in client.read_flow_run_states(run.id))
    if not _is_unchanged(client, run):
        return
    if crashes > MAX_LOST:
        message = f"lost {crashes} times: {run.state.message if run.state else ''}"
        client.set_flow_run_state(run.id, Failed(name="Failed: FarmError", message=message))
        return
    get_logger("recovery").warning("%s: crashed, and sent back to its queue", run.name)
    client.set_flow_run_state(run.id, Scheduled(name="AwaitingRetry", message=RESCHEDULED))


def _is_unchanged(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Whether the run is still in the state that was read: an automation may have been faster."""
    try:
        now = client.read_flow_run(run.id)
    except ObjectNotFound:
        return False
    return now.state_id == run.state_id
