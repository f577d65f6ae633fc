"""What dies in the middle of a build, and what is left: everything that was finished."""

from __future__ import annotations

import json
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from uuid import UUID

import psutil
import pytest
from prefect.states import Cancelling

from enginefarm.store import embedded
from tests.flows import slow_recipe, tiny_recipe
from tests.flows.farm_fixture import Farm, until

BUILDER = "enginefarm.builder_child"
RUN = "flows.run_process"
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
    """Stops a builder that is at work: before that it has not yet tied its life to its run's."""
    until(
        lambda: any("libtensorrt_rtx" in mapped.path for mapped in builder.memory_maps()),
        "the builder has loaded TensorRT-RTX",
        30,
        pause_s=0.02,
    )
    builder.suspend()


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_killed_flow_process_is_started_again(farm: Farm) -> None:
    run_id = start(farm, "flowkill", "a100")
    builder = farm.seize("a100", BUILDER)
    freeze(builder)
    (process,) = farm.running("a100", RUN)
    process.kill()
    until(lambda: gone(builder), "the builder dies with its run", 10)
    assert list(farm.store.manifests("flowkill")) == []
    ended = farm.wait(run_id)
    assert ended.state.is_completed(), ended.state.message
    (child,) = farm.children(run_id)
    assert child.run_count == 2
    states = farm.states(child.id)
    assert states.index("Crashed") < states.index("AwaitingRetry") < states.index("Built")
    whole(farm, "flowkill", "a100/fp16")


def test_a_killed_worker_takes_its_builds_along_and_they_are_done_again(farm: Farm) -> None:
    tiny_recipe.write(farm.recipes / "quick", name="quick", gpus=["l4"], precisions=["fp16"])
    run_id = start(farm, "workerkill", "l4")
    builder = farm.seize("l4", BUILDER)
    freeze(builder)
    (process,) = farm.running("l4", RUN)
    killed = time.monotonic()
    farm.stop("l4", signal.SIGKILL)
    until(lambda: gone(process) and gone(builder), "run and builder die with the worker", 10)
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
    # Its own run, among those of the control worker.
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


def test_cancelling_the_parent_ends_children_and_builders(farm: Farm) -> None:
    run_id = start(farm, "cancelled", "a100", "t4")
    builders = [farm.seize(label, BUILDER) for label in ("a100", "t4")]
    for builder in builders:
        freeze(builder)  # else it may be done before the word has gone round
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
def webhook() -> object:
    """A local receiver of notifications: (url, what arrived)."""
    arrived: list[dict[str, str]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            arrived.append(json.loads(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook", arrived
    server.shutdown()


def test_a_nightly_that_fails_and_a_silent_worker_are_told_to_the_webhook(
    farm: Farm, webhook: tuple[str, list[dict[str, str]]]
) -> None:
    url, arrived = webhook
    deployed = farm.command("deploy", ENGINEFARM_WEBHOOK_URL=url)
    assert deployed.returncode == 0, deployed.stderr
    farm.start_worker("spare", "--cpu")
    # Its first sign of life was an event; then it dies without a word.
    time.sleep(3)
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
