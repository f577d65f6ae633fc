"""What dies in the middle of a build, and what is left: everything that was finished."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest
from prefect.states import Cancelling

from enginefarm.farm.policy import BACKOFF_S
from enginefarm.store import embedded
from tests.farm.farm_fixture import Farm, until
from tests.farm.interrupted import RECOGNIZED_S, hold, start, whole
from tests.farm.webhook_receiver import Received, receiver
from tests.processes import gone


def test_a_killed_flow_process_is_started_again(farm: Farm) -> None:
    run_id = start(farm, "flowkill", "a100")
    (builder,) = hold(farm, "a100")
    (process,) = farm.run_processes("a100")
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


def test_a_killed_forkserver_takes_its_run_along_and_it_is_done_again(farm: Farm) -> None:
    run_id = start(farm, "forkserverkill", "t4")
    (builder,) = hold(farm, "t4")
    (killed,) = farm.forkservers("t4")
    (process,) = killed.children()
    killed.kill()
    until(lambda: gone(builder) and gone(process), "the run dies with the forkserver", 30)
    ended = farm.wait(run_id)
    assert ended.state.is_completed(), ended.state.message
    (child,) = farm.children(run_id)
    assert child.run_count == 2
    (again,) = farm.forkservers("t4")
    assert again.pid != killed.pid
    whole(farm, "forkserverkill", "t4/fp16")


def test_a_killed_parent_finds_its_children_again(farm: Farm) -> None:
    run_id = start(farm, "parentkill", "a100", "t4")
    builders = hold(farm, "a100", "t4")
    before = {child.id for child in farm.children(run_id)}
    # The run of the test before may not have quite gone.
    until(lambda: len(farm.run_processes("control")) == 1, "its run is the only one")
    (process,) = farm.run_processes("control")
    process.kill()
    until(lambda: "AwaitingRetry" in farm.states(run_id), "the parent is sent back", RECOGNIZED_S)
    for builder in builders:
        builder.resume()
    ended = farm.wait(run_id)
    assert ended.state.is_completed(), ended.state.message
    assert ended.run_count == 2
    children = farm.children(run_id)
    assert before <= {child.id for child in children}
    assert len(children) == 2
    assert {child.run_count for child in children} == {1}
    whole(farm, "parentkill", "a100/fp16", "t4/fp16")


def test_cancelling_the_parent_ends_children_and_builders(farm: Farm) -> None:
    run_id = start(farm, "cancelled", "a100", "t4")
    builders = hold(farm, "a100", "t4")
    with farm.client() as client:
        client.set_flow_run_state(run_id, Cancelling())
    until(lambda: all(map(gone, builders)), "the builders are killed", RECOGNIZED_S)
    assert farm.wait(run_id).state.is_cancelled()
    until(
        lambda: all(child.state.is_cancelled() for child in farm.children(run_id)),
        "the children are cancelled",
        said=lambda: str([child.state for child in farm.children(run_id)]),
    )
    assert list(farm.store.manifests("cancelled")) == []


def test_a_server_that_is_restarted_in_the_middle(farm: Farm) -> None:
    run_id = start(farm, "restart", "a100")
    (builder,) = hold(farm, "a100")
    farm.stop("server", signal.SIGTERM)
    time.sleep(5)
    farm.start_server()
    builder.resume()
    ended = farm.wait(run_id)
    assert ended.state.is_completed(), ended.state.message
    whole(farm, "restart", "a100/fp16")


def test_an_s3_server_that_is_away_for_half_a_minute(farm: Farm) -> None:
    run_id = start(farm, "s3away", "t4")
    (builder,) = hold(farm, "t4")
    stopped = time.monotonic()
    embedded.stop(farm.s3_home)
    builder.resume()
    time.sleep(30)
    restarted = embedded.start(farm.s3_home)
    away_s = time.monotonic() - stopped
    assert restarted.endpoint == farm.s3.endpoint
    ended = farm.wait(run_id)
    assert ended.state.is_completed(), ended.state.message
    (child,) = farm.children(run_id)
    # A busy machine starts the server slowly. What is away for longer than a task tries ends
    # the run, which is then started again.
    assert child.run_count == 1 or away_s > sum(BACKOFF_S)
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
        RECOGNIZED_S,
        said=lambda: str(arrived),
    )
    silent = next(one for one in arrived if one["automation"] == "enginefarm: worker silent")
    assert silent["resource"] == "enginefarm.worker.cpu.spare"
