"""The error that `submit` ends with is the one that the run's last state tells."""

from __future__ import annotations

from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType

from enginefarm.errors import (
    AccuracyError,
    BuildCancelled,
    EnginefarmError,
    FarmError,
    ParseError,
    RecipeError,
)
from enginefarm.farm import submit

MISSING = "tiny: 1 of 2 engines are missing\n  why: "


def run(kind: StateType, name: str | None, message: str | None) -> FlowRun:
    return FlowRun(flow_id=uuid4(), name="tiny", state=State(type=kind, name=name, message=message))


@pytest.mark.parametrize(
    ("kind", "name", "message", "error"),
    [
        (StateType.FAILED, "Failed: RecipeError", "recipe: no", RecipeError),
        (StateType.FAILED, "Failed", f"{MISSING}t4/fp16 failed: ParseError: no", ParseError),
        (StateType.FAILED, "Failed", f"{MISSING}t4/int8 rejected: accuracy: 0.9", AccuracyError),
        (StateType.FAILED, "Failed", "something else", FarmError),
        (StateType.FAILED, "Failed: no_such_kind", None, FarmError),
        (StateType.CRASHED, None, "No sign of life", FarmError),
        (StateType.CANCELLED, None, None, BuildCancelled),
    ],
)
def test_the_kind_and_so_the_exit_code_are_those_of_the_reason(
    kind: StateType, name: str | None, message: str | None, error: type[EnginefarmError]
) -> None:
    found = submit.failure(run(kind, name, message))
    assert type(found) is error
    assert (message or "gave no reason" if kind != StateType.CANCELLED else "cancelled") in str(
        found
    )


def test_a_run_that_completed_is_no_error() -> None:
    assert submit.failure(run(StateType.COMPLETED, None, None)) is None
