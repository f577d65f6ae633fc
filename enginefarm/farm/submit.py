"""Starts a build-model run on the farm, follows it, and reads its result."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterType,
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from enginefarm.documents import written_errors
from enginefarm.errors import AccuracyError, BuildCancelled, EnginefarmError, FarmError, RecipeError
from enginefarm.farm import recovery
from enginefarm.farm.run_form import DEPLOYMENT
from enginefarm.names import PRECISION_NAMES

EVERY_S = 1.0
PAGE = 200


def start(
    client: SyncPrefectClient, recipe: str, gpus: Sequence[str], precisions: Sequence[str]
) -> UUID:
    """The run of the deployment build-model. Raises: FarmError, RecipeError when it is refused."""
    try:
        deployment = client.read_deployment_by_name(DEPLOYMENT)
    except ObjectNotFound:
        raise FarmError(
            f"submit: the server has no deployment {DEPLOYMENT}", fix="enginefarm deploy"
        ) from None
    parameters = {"recipe": recipe, "gpus": list(gpus), "precisions": list(precisions)}
    try:
        return client.create_flow_run_from_deployment(deployment.id, parameters=parameters).id
    except PrefectHTTPStatusError as error:
        if error.response.status_code not in (409, 422):
            raise
        raise RecipeError(
            f"submit: the farm refuses these parameters: {recipe}",
            why=_detail(error),
            fix="`enginefarm gpus` lists the labels; the precisions are "
            + ", ".join(PRECISION_NAMES),
        ) from error


def _detail(error: PrefectHTTPStatusError) -> str:
    try:
        answer = error.response.json()
    except ValueError:
        return error.response.text[:300]
    return str(answer.get("detail") or answer)[:300]


def follow(
    client: SyncPrefectClient,
    run_id: UUID,
    say: Callable[[str], None],
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> FlowRun:
    """Reports each state change of the run and its children; returns the run when it has ended."""
    seen: dict[UUID, str] = {}
    while True:
        run = client.read_flow_run(run_id)
        for one in (run, *_children(client, run_id)):
            state = one.state.name if one.state else None
            if state is not None and seen.get(one.id) != state:
                seen[one.id] = state
                say(f"{one.name}: {state}{_reason(one)}")
        if recovery.has_ended(run):
            return run
        sleep(EVERY_S)


def _reason(run: FlowRun) -> str:
    """The first line of the reason, for a run that did not complete; else empty."""
    state = run.state
    if state is None or not state.is_final() or state.is_completed() or not state.message:
        return ""
    return f": {state.message.splitlines()[0]}"


def _children(client: SyncPrefectClient, run_id: UUID) -> Iterator[FlowRun]:
    yield from client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run_id])
        ),
        limit=PAGE,
    )


def table(client: SyncPrefectClient, run_id: UUID) -> list[dict[str, Any]]:
    """The rows of the run's table of engines; none when it failed earlier."""
    found = client.read_artifacts(
        artifact_filter=ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]),
            type=ArtifactFilterType(any_=["table"]),
        )
    )
    rows: list[dict[str, Any]] = json.loads(str(found[0].data)) if found else []
    return rows


def failure(run: FlowRun) -> EnginefarmError | None:
    """The error that ended the run; None when it completed."""
    state = run.state
    if state is None or state.is_completed():
        return None
    text = state.message or "the run gave no reason"
    if state.is_cancelled():
        return BuildCancelled(f"{run.name}: cancelled")
    return _error_class(state.name or "", text)(text)


def _error_class(state: str, text: str) -> type[EnginefarmError]:
    """The error class named by the state, or else by the first missing engine."""
    if re.search(r"\brejected: accuracy", text) and "failed: " not in text:
        return AccuracyError
    named = re.search(r"\bfailed: (\w+)", text)
    for name in (state.removeprefix("Failed: "), named[1] if named else ""):
        kind = written_errors.kind_named(name)
        if kind is not None and kind.__init__ is EnginefarmError.__init__:
            return kind
    return FarmError
