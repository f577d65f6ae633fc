"""Recipes take turns at a pool, and what a person asks for comes before the night."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from uuid import UUID

import pytest
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

from enginefarm.farm.worker import card as workers
from tests import tiny_recipe
from tests.farm.farm_fixture import Farm, until

POOL = "gpu-l40"


@contextmanager
def said_to_be_online(farm: Farm, name: str) -> Iterator[None]:
    """The card of a worker that does not take runs yet."""
    card = workers.Card(
        name=name,
        role="cross",
        pool=POOL,
        gpu="l40",
        toolchains=workers.check_toolchains("cross"),
        host="here",
        pid=1,
        started_at=datetime.now(UTC),
    )
    with workers.registered(farm.store, card):
        yield


def engines_at_it(farm: Farm, run_id: UUID) -> int:
    """Steps of the parent that have their graph and want their plan."""
    with farm.client() as client:
        steps = client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))
        )
    return sum(step.name.startswith("l40 ") for step in steps)


@pytest.fixture
def l40(farm: Farm) -> Iterator[None]:
    """Ends the worker that the test has started."""
    yield
    farm.stop("l40")


@pytest.mark.usefixtures("l40")
def test_a_small_recipe_does_not_wait_for_all_of_a_large_one(farm: Farm) -> None:
    assert farm.command("deploy", "--gpu", "l40").returncode == 0
    large_of = ["fp32", "fp16", "bf16"]
    small_of = ["fp16"]
    for name, precisions in (("large", large_of), ("small", small_of)):
        tiny_recipe.write(
            farm.recipes / name,
            name=name,
            salt=name,
            gpus=["l40"],
            precisions=precisions,
            accuracy={one: {"min_cosine": 0.5, "max_relative_l2": 0.9} for one in precisions},
        )
    with said_to_be_online(farm, "waiting"):
        large = farm.submit("build-model/build-model", recipe="large")
        until(lambda: engines_at_it(farm, large) == len(large_of), "every engine waits for a turn")
        until(lambda: len(farm.children(large)) == 2, "one run at work, and one that waits")
        small = farm.submit("build-model/build-model", recipe="small")
        until(lambda: len(farm.children(small)) == 1, "the small one has its run")
        assert len(farm.children(large)) == 2
    farm.start_worker("l40", "--gpu", "l40", "--cross")
    assert farm.wait(large).state.is_completed()
    assert farm.wait(small).state.is_completed()
    started = sorted(
        (child.start_time, child.name.split()[0])
        for run in (large, small)
        for child in farm.children(run)
    )
    assert len(started) == len(large_of) + len(small_of)
    turns = [name for _, name in started]
    assert "small" in turns[:3], turns
