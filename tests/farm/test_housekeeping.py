"""Benchmarks that nobody waits for are withdrawn; cards of workers long gone are removed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State, StateType

from enginefarm.documents.manifest import Manifest
from enginefarm.farm import housekeeping
from enginefarm.farm.worker import card as workers
from enginefarm.store import failed_builds, layout
from enginefarm.store.engine_store import EngineStore


class Server:
    """As much of Prefect's client as is asked."""

    def __init__(self, *digests: str) -> None:
        self.runs = [
            FlowRun(
                id=uuid4(),
                flow_id=uuid4(),
                parameters={"spec_digest": digest},
                state=State(type=StateType.SCHEDULED),
            )
            for digest in digests
        ]
        self.cancelled: dict[UUID, str] = {}

    def read_flow_runs(self, *, limit: int, offset: int, **_: Any) -> list[FlowRun]:
        return self.runs[offset : offset + limit]

    def set_flow_run_state(self, run_id: UUID, state: State[Any], *, force: bool) -> None:
        assert force
        assert state.is_cancelled()
        self.cancelled[run_id] = state.message or ""

    def said(self) -> list[str | None]:
        return [self.cancelled.get(run.id) for run in self.runs]


def keep_house(server: Server, store: EngineStore, **when: datetime) -> int:
    return housekeeping.clean_up(cast(SyncPrefectClient, server), store, **when)


def test_benchmarks_of_engines_that_are_superseded_verified_or_gone_are_withdrawn(
    store_environment: EngineStore, publish: Callable[..., Manifest]
) -> None:
    old = publish(b"old", salt="old")
    new = publish(b"new", salt="new", minutes=1)
    verified = publish(b"verified", recipe="other", on_device="passed")
    server = Server(old.spec_digest, new.spec_digest, verified.spec_digest, "0" * 64)
    assert keep_house(server, store_environment) == 3
    assert server.said() == [
        housekeeping.SUPERSEDED,
        None,
        housekeeping.DONE,
        housekeeping.SUPERSEDED,
    ]


def test_a_benchmark_of_an_engine_that_the_index_does_not_list_yet_stays(
    store_environment: EngineStore, publish: Callable[..., Manifest]
) -> None:
    manifest = publish()
    store_environment.objects.delete(layout.index(layout.entry_of(manifest)))
    assert keep_house(Server(manifest.spec_digest), store_environment) == 0


@pytest.mark.parametrize("age_days", [1, 8])
def test_a_card_goes_a_week_after_its_worker(store: EngineStore, age_days: int) -> None:
    card = workers.Card(
        name="gone",
        role="cpu",
        pool="cpu",
        host="h",
        pid=1,
        started_at=datetime.now(UTC),
    )
    workers.write(store, card)
    keep_house(Server(), store, now=datetime.now(UTC) + timedelta(days=age_days))
    assert [row.card.name for row in workers.list_workers(store)] == (
        [] if age_days == 8 else ["gone"]
    )


def test_the_log_of_a_failed_build_goes_after_a_month(store: EngineStore) -> None:
    failed_builds.record(store, "model", "t4", "fp16", "0" * 64, b"said")
    month = timedelta(days=failed_builds.KEPT_DAYS)
    now = datetime.now(UTC)
    assert keep_house(Server(), store, now=now + month - timedelta(hours=1)) == 0
    assert keep_house(Server(), store, now=now + month + timedelta(hours=1)) == 1
    assert failed_builds.listed(store, "model") == []
