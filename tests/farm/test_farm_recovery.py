"""What dies in the middle of a build, and what is left: everything that was finished."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from uuid import UUID

import psutil
import pytest
from prefect.states import Cancelling, Crashed, Pending

from enginefarm.store import embedded
from tests import slow_recipe, tiny_recipe
from tests.farm.farm_fixture import Farm, until
from tests.farm.webhook_receiver import Received, receiver

BUILDER = "enginefarm.building.isolate:build_here"
RUN = "enginefarm.farm.worker.run_process"
ZYGOTE = "enginefarm.farm.worker.zygote"
RECOGNISED_S = 120


def start(farm: Farm, name: str, *gpus: str) -> UUID:
    slow_recipe.write(farm.recipes / name, name=name, gpus=list(gpus))
    return farm.submit("build-model/build-model", recipe=name)


def whole(farm: Farm, recipe: str, *labels: str) -> None:
    """Exactly these engines are published, each with its bytes; nothing else is left over."""
    manifests = list(farm.store.manifests(recipe))
    assert sorted(one.spec.label for one in manifests) == sorted(labels)
    for manifest in manifests:
        assert farm.store.has_blob(manifest.engine)
        assert farm.store.has_blob(manifest.graph.model)


def freeze(builder: psutil.Process) -> None:
    """Stops a builder that is at work: before that it has not yet tied its life to its run's.

    It stands still while it is looked at, so that it cannot end in between on a busy machine.
    """

    def at_work() -> bool:
        builder.suspend()
        if any("libtensorrt_rtx" in mapped.path for mapped in builder.memory_maps()):
            return True
        builder.resume()
        return False

    until(at_work, "the builder has loaded TensorRT-RTX", 30, pause_s=0.02)


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_killed_flow_process_is_started_again(farm: Farm) -> None:
    run_id = start(farm, "flowkill", "a100")
    builder = farm.seize("a100", BUILDER)
    freeze(builder)
    (process,) = farm.running("a100", RUN)
    process.kill()
    until(lambda: gone(builder), "the builder dies with its run", 30)
    assert list(farm.store.manifests("flowkill")) == []
    ended = farm.wait(run_id)
    assert ended.state.is_completed(), ended.state.message
    (child,) = farm.children(run_id)
    assert child.run_count == 2
    states = farm.states(child.id)
    assert states.index("Crashed") < states.index("AwaitingRetry") < states.index("Built")
    whole(farm, "flowkill", "a100/fp16")


def test_a_killed_zygote_takes_its_run_along_and_it_is_done_again(farm: Farm) -> None:
    run_id = start(farm, "zygotekill", "t4")
    builder = farm.seize("t4", BUILDER)
    freeze(builder)
    (leader,) = farm.running("t4", RUN)
    worker = psutil.Process(farm.processes["t4"].pid)
    (zygote,) = [
        one for one in worker.children() if "enginefarm.farm.worker.zygote" in one.cmdline()
    ]
    zygote.kill()
    until(lambda: gone(builder) and gone(leader), "the run dies with the zygote", 30)
    ended = farm.wait(run_id)
    assert ended.state.is_completed(), ended.state.message
    (child,) = farm.children(run_id)
    assert child.run_count == 2
    whole(farm, "zygotekill", "t4/fp16")


def test_a_killed_worker_takes_its_builds_along_and_they_are_done_again(farm: Farm) -> None:
    tiny_recipe.write(farm.recipes / "quick", name="quick", gpus=["l4"], precisions=["fp16"])
    run_id = start(farm, "workerkill", "l4")
    builder = farm.seize("l4", BUILDER)
    freeze(builder)
    (process,) = farm.running("l4", RUN)
    killed = time.monotonic()
    farm.stop("l4", signal.SIGKILL)
    until(lambda: gone(process) and gone(builder), "run and builder die with the worker", 30)
    (child,) = farm.children(run_id)
    until(
        lambda: "Crashed" in farm.states(child.id),
        "the run is recognised as crashed",
        RECOGNISED_S - (time.monotonic() - killed),
    )
    farm.start_worker("l4", "--gpu", "l4", "--cross")
    ended = farm.wait(run_id)
    assert ended.state.is_completed(), ended.state.message
    assert ended.run_count == 1
    whole(farm, "workerkill", "l4/fp16")
    # No lock is left behind: the next build of that worker goes through.
    assert farm.run("build-model/build-model", recipe="quick").state.is_completed()


def test_a_killed_parent_finds_its_children_again(farm: Farm) -> None:
    run_id = start(farm, "parentkill", "a100", "t4")
    farm.seize("a100", BUILDER)
    before = {child.id for child in farm.children(run_id)}
    # The run of the test before may not have quite gone.
    until(lambda: len(farm.running("control", RUN)) == 1, "its run is the only one")
    (process,) = farm.running("control", RUN)
    process.kill()
    until(lambda: "AwaitingRetry" in farm.states(run_id), "the parent is sent back", RECOGNISED_S)
    ended = farm.wait(run_id)
    assert ended.state.is_completed(), ended.state.message
    assert ended.run_count == 2
    children = farm.children(run_id)
    assert before <= {child.id for child in children}
    assert len(children) == 2
    assert {child.run_count for child in children} == {1}
    whole(farm, "parentkill", "a100/fp16", "t4/fp16")


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
    freeze(farm.seize("l4", BUILDER))
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
    for child in (building, taken):
        until(
            lambda child=child: "AwaitingRetry" in farm.states(child.id),
            f"{child.name} is sent back",
            RECOGNISED_S - (time.monotonic() - killed),
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


def test_cancelling_the_parent_ends_children_and_builders(farm: Farm) -> None:
    run_id = start(farm, "cancelled", "a100", "t4")
    builders = []
    for label in ("a100", "t4"):
        builders.append(farm.seize(label, BUILDER))
        freeze(builders[-1])  # else it may be done before the word has gone round
    with farm.client() as client:
        client.set_flow_run_state(run_id, Cancelling())
    until(lambda: all(map(gone, builders)), "the builders are killed", RECOGNISED_S)
    assert farm.wait(run_id).state.is_cancelled()
    until(
        lambda: all(child.state.is_cancelled() for child in farm.children(run_id)),
        "the children are cancelled",
        said=lambda: str([child.state for child in farm.children(run_id)]),
    )
    assert list(farm.store.manifests("cancelled")) == []


def test_a_server_that_is_restarted_in_the_middle(farm: Farm) -> None:
    run_id = start(farm, "restart", "a100")
    farm.seize("a100", BUILDER)
    farm.stop("server", signal.SIGTERM)
    time.sleep(5)
    farm.start_server()
    ended = farm.wait(run_id)
    assert ended.state.is_completed(), ended.state.message
    whole(farm, "restart", "a100/fp16")


def test_an_s3_server_that_is_away_for_half_a_minute(farm: Farm) -> None:
    run_id = start(farm, "s3away", "t4")
    farm.seize("t4", BUILDER)
    embedded.stop(farm.s3_home)
    time.sleep(30)
    restarted = embedded.start(farm.s3_home)
    assert restarted.endpoint == farm.s3.endpoint
    ended = farm.wait(run_id)
    assert ended.state.is_completed(), ended.state.message
    (child,) = farm.children(run_id)
    assert child.run_count == 1
    whole(farm, "s3away", "t4/fp16")


@pytest.fixture
def webhook() -> Iterator[Received]:
    with receiver() as made:
        yield made


def heard(farm: Farm, resource: str) -> bool:
    """Whether the server has an event of it."""
    with farm.client() as client:
        wanted = {"filter": {"resource": {"id": [resource]}}, "limit": 1}
        return bool(client.request("POST", "/events/filter", json=wanted).json()["events"])


def test_a_nightly_that_fails_and_a_silent_worker_are_told_to_the_webhook(
    farm: Farm, webhook: Received
) -> None:
    url, arrived = webhook
    deployed = farm.command("deploy", ENGINEFARM_WEBHOOK_URL=url)
    assert deployed.returncode == 0, deployed.stderr
    farm.start_worker("spare", "--cpu")
    until(lambda: heard(farm, "enginefarm.worker.cpu.spare"), "it gives a sign of life")
    farm.stop("spare", signal.SIGKILL)
    broken = farm.recipes / "broken-night" / "one"
    broken.mkdir(parents=True)
    (broken / "recipe.yaml").write_text("name: 7")
    night = farm.run("nightly-rebuild/nightly-rebuild", folder="broken-night")
    assert night.state.is_failed()
    assert "recipe.yaml: RecipeError" in night.state.message
    until(
        lambda: (
            {one["automation"] for one in arrived}
            >= {"enginefarm: nightly failed", "enginefarm: worker silent"}
        ),
        "both arrive",
        RECOGNISED_S,
        said=lambda: str(arrived),
    )
    silent = next(one for one in arrived if one["automation"] == "enginefarm: worker silent")
    assert silent["resource"] == "enginefarm.worker.cpu.spare"
