"""A worker that dies in the middle of a build: found out by its silence, and done again.

Apart from test_farm_recovery.py, because each waits for minutes: on another farm they wait while
those work.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from uuid import UUID

import pytest
from prefect.states import Crashed, Pending

from tests import tiny_recipe
from tests.farm.farm_fixture import Farm, until
from tests.farm.interrupted import RECOGNIZED_S, heard, hold, start, whole
from tests.processes import gone


def test_a_killed_worker_takes_its_builds_along_and_they_are_done_again(farm: Farm) -> None:
    tiny_recipe.write(farm.recipes / "quick", name="quick", gpus=["l4"], precisions=["fp16"])
    run_id = start(farm, "workerkill", "l4")
    (builder,) = hold(farm, "l4")
    (process,) = farm.run_processes("l4")
    killed = time.monotonic()
    farm.stop("l4", signal.SIGKILL)
    until(lambda: gone(process) and gone(builder), "run and builder die with the worker", 30)
    (child,) = farm.children(run_id)
    until(
        lambda: "Crashed" in farm.states(child.id),
        "the run is recognized as crashed",
        RECOGNIZED_S - (time.monotonic() - killed),
        said=lambda: heard(farm, child.id),
    )
    farm.start_worker("l4", "--gpu", "l4", "--cross")
    ended = farm.wait(run_id)
    assert ended.state.is_completed(), ended.state.message
    assert ended.run_count == 1
    whole(farm, "workerkill", "l4/fp16")
    # No lock is left behind: the next build of that worker goes through.
    assert farm.run("build-model/build-model", recipe="quick").state.is_completed()


@pytest.fixture
def deaf(farm: Farm) -> Iterator[None]:
    """The server's automations off: what a kill of the server at the wrong moment does."""
    with farm.client() as client:
        recovering = [
            one for one in client.read_automations() if re.search("run gone|reschedule", one.name)
        ]
        assert len(recovering) == 3
        for automation in recovering:
            client.pause_automation(automation.id)
        yield
        for automation in recovering:
            client.resume_automation(automation.id)


def never_started(farm: Farm, *, times: int) -> UUID:
    with farm.client() as client:
        deployment = client.read_deployment_by_name("build-model/build-model")
        run_id = client.create_flow_run_from_deployment(
            deployment.id, parameters={"recipe": "none"}, state=Pending()
        ).id
        for state in [Crashed(), Pending()] * (times - 1) + [Crashed()]:
            client.set_flow_run_state(run_id, state, force=True)
    return run_id


@pytest.mark.usefixtures("deaf")
def test_what_the_automations_did_not_hear_is_found_and_done_again(farm: Farm) -> None:
    """One run dies with its worker as it builds, another between Submitting and Running.

    A third has died so often before it started that it is given up.
    """
    doomed_id = never_started(farm, times=11)
    run_id = start(farm, "unheard", "l4")
    hold(farm, "l4")
    (building,) = farm.children(run_id)
    killed = time.monotonic()
    farm.stop("l4", signal.SIGKILL)
    tiny_recipe.write(
        farm.recipes / "taken", name="taken", salt="taken", gpus=["l4"], precisions=["fp16"]
    )
    quick_id = farm.submit("build-model/build-model", recipe="taken")
    until(lambda: bool(farm.children(quick_id)), "the second engine has its run")
    (taken,) = farm.children(quick_id)
    with farm.client() as client:
        # As the worker leaves it that takes a run, and is killed before its process starts.
        client.set_flow_run_state(taken.id, Pending())
        client.set_flow_run_state(taken.id, Pending(name="Submitting"))
    for child, silent_since in ((building, killed), (taken, time.monotonic())):
        until(
            lambda child=child: "AwaitingRetry" in farm.states(child.id),
            f"{child.name} is sent back",
            RECOGNIZED_S - (time.monotonic() - silent_since),
            said=lambda child=child: heard(farm, child.id),
        )
    farm.start_worker("l4", "--gpu", "l4", "--cross")
    for one in (run_id, quick_id):
        ended = farm.wait(one)
        assert ended.state.is_completed(), ended.state.message
    whole(farm, "unheard", "l4/fp16")
    whole(farm, "taken", "l4/fp16")
    doomed = farm.look(doomed_id)
    assert doomed.state.is_failed()
    assert "lost 11 times" in doomed.state.message
