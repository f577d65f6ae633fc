"""When a child is waited for, when it has ended, and when it is given up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx
import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import PrefectHTTPStatusError
from sample_manifest import make_manifest

from enginefarm.building.engine import Job
from enginefarm.farm import dispatch, recovery
from enginefarm.farm.worker import card as workers
from enginefarm.store.engine_store import EngineStore


def run(kind: StateType, *, ago_s: float, run_count: int = 1, name: str | None = None) -> FlowRun:
    state = State(type=kind, name=name, timestamp=datetime.now(UTC) - timedelta(seconds=ago_s))
    return FlowRun(flow_id=uuid4(), state=state, run_count=run_count, work_pool_name="gpu-t4")


@pytest.mark.parametrize(
    ("kind", "ago_s", "run_count", "ended"),
    [
        (StateType.COMPLETED, 0, 1, True),
        (StateType.FAILED, 0, 1, True),
        (StateType.RUNNING, 9000, 1, False),
        (StateType.CRASHED, 0, 1, False),  # about to be retried
        (StateType.CRASHED, 0, 3, True),  # its last attempt
        (StateType.CRASHED, 9000, 2, False),  # a server that was away answers late
    ],
)
def test_a_crash_is_the_end_only_when_nobody_sends_it_back(
    kind: StateType, ago_s: float, run_count: int, ended: bool
) -> None:
    assert recovery.has_ended(run(kind, ago_s=ago_s, run_count=run_count)) is ended


def test_a_child_is_given_up_when_its_pool_has_no_worker_left(
    store_environment: EngineStore,
) -> None:
    waiting = run(StateType.SCHEDULED, ago_s=dispatch.STRANDED_S + 1)
    assert dispatch._is_stranded(waiting)
    assert dispatch._is_stranded(run(StateType.CRASHED, ago_s=dispatch.STRANDED_S + 1))
    assert not dispatch._is_stranded(run(StateType.SCHEDULED, ago_s=10))
    assert not dispatch._is_stranded(run(StateType.RUNNING, ago_s=9000))
    card = workers.Card(
        name="t4",
        role="cross",
        pool="gpu-t4",
        gpu="t4",
        host="h",
        pid=1,
        started_at=datetime.now(UTC),
    )
    with workers.registered(store_environment, card):
        assert not dispatch._is_stranded(waiting)


def answer(status: int) -> PrefectHTTPStatusError:
    request = httpx.Request("POST", "http://farm/api")
    response = httpx.Response(status, request=request)
    return PrefectHTTPStatusError(str(status), request=request, response=response)


@pytest.mark.parametrize("refused", [answer(503), httpx.ConnectError("gone")])
def test_a_server_that_is_too_busy_to_start_a_run_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, refused: Exception
) -> None:
    answers = iter([refused, refused, "the run"])

    def start(name: str) -> object:
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(dispatch, "BACKOFF_S", [0, 0])
    assert dispatch.started(start, "build-engine/cpu") == "the run"


def test_a_refusal_is_not_asked_again() -> None:
    asked: list[str] = []

    def start(name: str) -> object:
        asked.append(name)
        raise answer(409)

    with pytest.raises(PrefectHTTPStatusError):
        dispatch.started(start, "build-engine/cpu")
    assert asked == ["build-engine/cpu"]


def test_an_engine_that_another_recipe_has_is_listed_under_this_one_too(
    store_environment: EngineStore,
) -> None:
    store_environment.put_bytes(b"plan")
    store_environment.put_bytes(b"graph")
    made = make_manifest(engine=b"plan")
    store_environment.publish(made)
    job = Job.model_construct(recipe="twin", spec=made.spec)
    assert dispatch.build_on_pool(job, "gpu-a100") == (made, True)
    assert store_environment.complete("twin") == {made.spec_digest}
