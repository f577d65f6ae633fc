"""Hourly cleanup by the control worker of what would otherwise grow forever.

Prefect's own vacuum deletes runs and events after ENGINEFARM_KEEP_RUNS_DAYS
(server/environment.py). This module removes what Prefect cannot know: benchmarks of engines
that nobody wants any more, cards of workers that are gone, and logs of failed builds.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Cancelled

from enginefarm.documents.manifest import Manifest
from enginefarm.errors import EnginefarmError
from enginefarm.farm.worker import card as workers
from enginefarm.store import failed_builds
from enginefarm.store.engine_store import EngineStore

EVERY_S = 3600.0
PAGE = 200
CARD_DAYS = 7

SUPERSEDED = "A newer engine has taken this one's place, or it is no longer in the store"
DONE = "The engine has been run on its GPU meanwhile"


def clean_up(client: SyncPrefectClient, store: EngineStore, *, now: datetime | None = None) -> int:
    """Withdraws stale benchmarks, removes old cards and logs. Returns their number.

    Raises: StoreError.
    """
    moment = now or datetime.now(UTC)
    return (
        _withdraw_benchmarks(client, store)
        + _remove_cards(store, moment)
        + failed_builds.remove_old(store, moment)
    )


def _withdraw_benchmarks(client: SyncPrefectClient, store: EngineStore) -> int:
    newest: dict[tuple[str, str, str], str] = {}
    withdrawn = 0
    for run_id, digest in _waiting_benchmarks(client):
        reason = _reason_to_withdraw(store, digest, newest)
        if reason:
            client.set_flow_run_state(run_id, Cancelled(message=reason), force=True)
            withdrawn += 1
    return withdrawn


def _waiting_benchmarks(client: SyncPrefectClient) -> list[tuple[UUID, str]]:
    """The run id and the spec digest of each benchmark that no worker has taken yet."""
    found: list[FlowRun] = []
    while True:
        page = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=["benchmark-engine"])),
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
            ),
            sort=FlowRunSort.EXPECTED_START_TIME_ASC,
            limit=PAGE,
            offset=len(found),
        )
        found += page
        if len(page) < PAGE:
            return [(run.id, str(run.parameters.get("spec_digest", ""))) for run in found]


def _reason_to_withdraw(
    store: EngineStore, digest: str, newest: dict[tuple[str, str, str], str]
) -> str | None:
    """The reason why this benchmark is not needed anymore; None while it is needed."""
    try:
        manifest = store.manifest(digest)
        if manifest is None:
            return SUPERSEDED
        if manifest.device_verification.status != "pending":
            return DONE
        target = (manifest.recipe, manifest.gpu, manifest.precision)
        if target not in newest:
            newest[target] = _newest_spec(store, manifest)
    except EnginefarmError:
        return None  # a manifest that cannot be read is for `enginefarm fsck`
    return SUPERSEDED if newest[target] != digest else None


def _newest_spec(store: EngineStore, manifest: Manifest) -> str:
    found = store.manifests(manifest.recipe, manifest.gpu, manifest.precision)
    # Itself too: whoever published it may not have lived to list it.
    both = (manifest, *found)
    return max(both, key=lambda one: (one.created_at, one.spec_digest)).spec_digest


def _remove_cards(store: EngineStore, now: datetime) -> int:
    old = [
        row
        for row in workers.list_workers(store, now=now)
        if now - row.seen_at > timedelta(days=CARD_DAYS)
    ]
    for row in old:
        workers.remove(store, row.card)
    return len(old)
