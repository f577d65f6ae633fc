"""Runs that died unheard, and crashes that nobody answered: found by looking, every 15 s.

The automations answer a crash at once, but on what they heard: events and the actions that
follow wait in the server's memory, and a server that is killed takes them along. What a run
is stands in its database. The control worker compares the two.
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
"""As in deployments/automations.yaml, which are faster when they hear."""

MAX_LOST = 10
"""A run that is lost so often before it starts is given up: something kills it."""

SWEEP_S = 15.0
UNANSWERED_S = 10
"""An automation that heard of a crash has answered by then."""

SILENT_S = 75
ANSWERED_S = 45
"""A run beats every 30 s: it is silent only when the server could have heard it."""

FORGOTTEN_S = 24 * 3600
"""A crash as old as that is history, and nobody waits for its end."""

PAGE = 200


@contextmanager
def watched() -> Generator[None]:
    """Looks every SWEEP_S while the block runs. A server that is away is looked at later.

    What asks the store has a thread of its own: a store that is away keeps nobody waiting who
    looks for lost runs.
    """
    stopped = threading.Event()
    for name, look in (("recovery", _recover), ("housekeeping", _keep_house)):
        threading.Thread(target=_looking, name=name, args=(look, stopped), daemon=True).start()
    try:
        yield
    finally:
        stopped.set()


def _looking(look: Callable[[SyncPrefectClient], Look], stopped: threading.Event) -> None:
    """A look that goes wrong is logged, and is not the last one."""
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


def _recover(client: SyncPrefectClient) -> Look:
    sweep = Sweep()
    return lambda: sweep.once(client)


def _keep_house(client: SyncPrefectClient) -> Look:
    """Offers the recipes that there are in the run form, and every hour cleans up."""
    kept = time.monotonic()

    def once() -> None:
        nonlocal kept
        _tried("run form", run_form.refresh, client)
        if time.monotonic() - kept > housekeeping.EVERY_S:
            kept = time.monotonic()
            done = _tried("housekeeping", housekeeping.once, client)
            if done:
                get_logger("recovery").info(
                    "housekeeping: %d benchmarks, cards and logs are gone", done
                )

    return once


def _tried(
    what: str, step: Callable[[SyncPrefectClient, EngineStore], int], client: SyncPrefectClient
) -> int:
    try:
        return step(client, stages.here().store)
    except (httpx.HTTPError, PrefectHTTPStatusError, EnginefarmError, OSError) as error:
        get_logger("recovery").warning("%s: %s; tried again later", what, error)
        return 0


class Sweep:
    """One look after the other, and for how long the server has answered them."""

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
            if UNANSWERED_S < _age_s(run) < FORGOTTEN_S and sent_back(run):
                _send_back(client, run)
        now = time.monotonic()
        self._answered_since = self._answered_since or now
        if now - self._answered_since < ANSWERED_S:
            return
        for run in _runs(client, pools, StateType.PENDING, StateType.RUNNING):
            if _age_s(run) > SILENT_S and not _heard(client, run):
                _bury(client, run)


def sent_back(run: FlowRun) -> bool:
    """Whether a crash is not this run's end."""
    return run.run_count < MAX_ATTEMPTS


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


def _heard(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Whether the server has an event of the run that is not older than SILENT_S."""
    since = datetime.now(UTC) - timedelta(seconds=SILENT_S)
    wanted = {
        "occurred": {"since": since.isoformat()},
        "resource": {"id": [f"prefect.flow-run.{run.id}"]},
    }
    answer = client.request("POST", "/events/filter", json={"filter": wanted, "limit": 1})
    return bool(answer.json()["events"])


def _bury(client: SyncPrefectClient, run: FlowRun) -> None:
    if _same(client, run):
        get_logger("recovery").warning("%s: no sign of life for %d s", run.name, SILENT_S)
        client.set_flow_run_state(run.id, Crashed(message=f"No sign of life for {SILENT_S} s"))


def _send_back(client: SyncPrefectClient, run: FlowRun) -> None:
    crashes = sum(state.is_crashed() for state in client.read_flow_run_states(run.id))
    if not _same(client, run):
        return
    if crashes > MAX_LOST:
        message = f"lost {crashes} times: {run.state.message if run.state else ''}"
        client.set_flow_run_state(run.id, Failed(name="Failed: FarmError", message=message))
        return
    get_logger("recovery").warning("%s: crashed, and sent back to its queue", run.name)
    client.set_flow_run_state(run.id, Scheduled(name="AwaitingRetry", message=RESCHEDULED))


def _same(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Whether the run is still as it was found: an automation may have been faster."""
    try:
        now = client.read_flow_run(run.id)
    except ObjectNotFound:
        return False
    return now.state_id == run.state_id
