"""Deployments that people start beside build-model: promote, the nightly's alarm, benchmarks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.exceptions import PrefectHTTPStatusError
from sample_manifest import make_manifest
from sample_rows import make_row

from enginefarm.documents.manifest import Manifest
from enginefarm.release import promote as release
from enginefarm.store import channels
from enginefarm.store.channels import Revision
from enginefarm.tables.tables import BenchmarkTables
from tests import tiny_recipe
from tests.farm.farm_fixture import Farm, until
from tests.farm.webhook_receiver import Received, receiver

SECOND_GPU = "a10g"
"""A label whose pool no other test uses."""


def publish(farm: Farm, recipe: str, *labels: str) -> list[Manifest]:
    """Complete engines in the farm's store. Their bytes are no plans: nothing here runs them."""
    made = [
        make_manifest(recipe, label=label, engine=f"{recipe} {label}".encode()) for label in labels
    ]
    farm.store.put_bytes(b"graph")
    for label, manifest in zip(labels, made, strict=True):
        farm.store.put_bytes(f"{recipe} {label}".encode())
        farm.store.publish(manifest)
    return made


def production(farm: Farm, recipe: str) -> Revision | None:
    return channels.current(farm.store, recipe, "production")


# Promotion


def waiting(farm: Farm, recipe: str, **parameters: object) -> UUID:
    """A run of promote that waits for a person."""
    run_id = farm.submit(
        "promote/promote", recipe=recipe, source=None, allow_pending=True, **parameters
    )
    until(
        lambda: farm.look(run_id).state.is_paused() or farm.look(run_id).state.is_final(),
        "promote waits for a person",
        said=lambda: f"{farm.look(run_id).state}\n{farm.log('control')}",
    )
    assert farm.look(run_id).state.is_paused(), farm.look(run_id).state
    return run_id


def answer(farm: Farm, run_id: UUID, **form: object) -> str:
    """Fills in the form of a paused run, through the request that the UI sends."""
    with farm.client() as client:
        return client.resume_flow_run(run_id, run_input=form).status.value


def test_a_channel_moves_when_a_person_has_approved_and_the_log_names_them(farm: Farm) -> None:
    made = publish(farm, "approved", "t4", "a100")
    run_id = waiting(farm, "approved")
    assert production(farm, "approved") is None
    with farm.client() as client:
        (shown,) = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        )
    assert all(one.engine.digest[:12] in shown.data for one in made)
    assert "t4/fp16 device: waived not yet run on the GPU" in shown.data
    # The form is typed: without a name it is refused, and the run waits on.
    assert answer(farm, run_id, approved=True) == "REJECT"
    assert farm.look(run_id).state.is_paused()
    assert answer(farm, run_id, approved=True, by="Ana", why="tonight's are faster") == "ACCEPT"
    ended = farm.wait(run_id)
    assert (ended.state.name, ended.state.message) == (
        "Promoted",
        "approved@production is revision 1, by Ana",
    )
    moved = production(farm, "approved")
    assert moved is not None
    assert (moved.by, moved.why) == ("Ana", "tonight's are faster")
    assert {one.spec_digest for one in moved.engines} == {one.spec_digest for one in made}
    assert {one.gpu for one in moved.engines} == {"t4", "a100"}


def test_a_channel_stays_when_a_person_declines(farm: Farm) -> None:
    publish(farm, "declined", "t4")
    run_id = waiting(farm, "declined")
    answer(farm, run_id, approved=False, by="Ben", why="wait for the release")
    ended = farm.wait(run_id)
    assert ended.state.name == "Failed: GateError"
    assert "declined by Ben" in ended.state.message
    assert "wait for the release" in ended.state.message
    assert production(farm, "declined") is None


def test_an_approval_that_comes_after_another_move_is_too_late(farm: Farm) -> None:
    (made,) = publish(farm, "overtaken", "t4")
    run_id = waiting(farm, "overtaken")
    release.promote(farm.store, "overtaken", "production", allow_pending=True, by="Cem")
    answer(farm, run_id, approved=True, by="Ana")
    ended = farm.wait(run_id)
    assert ended.state.name == "Failed: StoreConflict"
    assert "somebody else moved it first" in ended.state.message
    now = production(farm, "overtaken")
    assert now is not None
    assert (now.revision, now.by) == (1, "Cem")
    assert now.engines[0].spec_digest == made.spec_digest


def test_promotion_without_asking_and_what_the_gates_refuse(farm: Farm) -> None:
    publish(farm, "unasked", "t4")
    refused = farm.run("promote/promote", recipe="unasked", source=None, ask=False)
    assert refused.state.name == "Failed: GateError"
    assert "device: not yet run on the GPU" in refused.state.message
    assert production(farm, "unasked") is None
    done = farm.run("promote/promote", recipe="unasked", source=None, ask=False, allow_pending=True)
    assert done.state.name == "Promoted", done.state.message
    assert farm.states(done.id).count("Paused") == 0
    assert production(farm, "unasked") is not None


def test_promoting_what_is_not_there_is_one_clear_error(farm: Farm) -> None:
    for parameters in ({}, {"source": "candidate"}):  # the form's defaults, and from a channel
        ended = farm.run("promote/promote", recipe="no-such-model", **parameters)
        assert ended.state.name == "Failed: StoreMissing"
        assert ended.state.message.startswith("promote: ")  # and not the command of a terminal
        assert "has no recipe 'no-such-model'" in ended.state.message
        assert "Traceback" not in ended.state.message


# The nightly's alarm


@pytest.fixture
def webhook() -> Iterator[Received]:
    with receiver() as received:
        yield received


def test_a_night_that_got_slower_ends_regressed_and_is_told_to_the_webhook(
    farm: Farm, webhook: Received
) -> None:
    deployed = farm.command("deploy", ENGINEFARM_WEBHOOK_URL=webhook.url)
    assert deployed.returncode == 0, deployed.stderr
    tiny_recipe.write(
        farm.recipes / "slow-night" / "one",
        name="slow-night",
        salt="slow-night",
        gpus=["l4"],
        precisions=["fp16"],
    )
    tonight = datetime.now(UTC).date()
    history = [
        make_row(
            tonight - timedelta(days=ago),
            recipe="slow-night",
            gpu="l4",
            latency_ms_median=3.0 if ago == 0 else 2.0 + 0.01 * (ago % 3),
        )
        for ago in range(8)
    ]
    BenchmarkTables(farm.store.objects).append(history)
    night = farm.run("nightly-rebuild/nightly-rebuild", folder="slow-night")
    assert night.state.name == "Regressed", night.state.message
    assert "slow-night l4 fp16" in night.state.message
    until(
        lambda: any(one["event"] == "enginefarm.nightly.regressed" for one in webhook.arrived),
        "the automation tells the webhook",
        60,
        said=lambda: str(webhook.arrived),
    )
    told = [one for one in webhook.arrived if one["event"] == "enginefarm.nightly.regressed"]
    assert [(one["automation"], one["resource"]) for one in told] == [
        ("enginefarm: nightly regressed", "enginefarm.recipe.slow-night")
    ]
    with farm.client() as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[night.id]))
        )
    (summary,) = [one for one in found if one.key == "nightly-summary"]
    assert "**slow-night** l4 fp16 tensorrt default 1 got slower: 1.49 ×" in summary.data


# Recipes in the store


def test_a_night_of_the_recipes_in_the_store(farm: Farm, tmp_path: Path) -> None:
    for name in ("kept", "kept-too"):
        folder = tmp_path / name
        tiny_recipe.write(folder, name=name, salt=name, gpus=["l4"], precisions=["fp16"])
        pushed = farm.command("recipes", "push", str(folder))
        assert pushed.returncode == 0, pushed.stderr
    shutil.rmtree(tmp_path)  # the farm has it all
    night = farm.run("nightly-rebuild/nightly-rebuild", folder="@store")
    assert night.state.is_completed(), night.state.message
    children = farm.children(night.id)
    assert {str(run.parameters["recipe"]) for run in children} == {"@store/kept", "@store/kept-too"}
    with farm.client() as client:
        queues = {
            one.name: one.priority for one in client.read_work_queues(work_pool_name="control")
        }
    assert {run.work_queue_name for run in children} == {"night"}
    assert queues["default"] < queues["night"], "what people ask for comes before the night"
    for name in ("kept", "kept-too"):
        assert [one.spec.label for one in farm.store.manifests(name)] == ["l4/fp16"]
    again = farm.run("nightly-rebuild/nightly-rebuild", folder="@store")
    assert (again.state.name, again.state.message) == ("Cached", "2 recipes, nothing to build")
    assert farm.children(again.id) == []
    unknown = farm.run("build-model/build-model", recipe="@store/lost")
    assert "the store has no recipe 'lost'" in unknown.state.message


# Benchmarks


def test_a_stand_in_leaves_benchmarks_alone(farm: Farm) -> None:
    (made,) = publish(farm, "stand-in", "l4")
    left = farm.submit("benchmark-engine/gpu-l4", spec_digest=made.spec_digest)
    # The worker of that pool that stands in for an L4 goes on taking builds meanwhile.
    tiny_recipe.write(
        farm.recipes / "meanwhile", name="meanwhile", salt="m", gpus=["l4"], precisions=["fp16"]
    )
    built = farm.run("build-model/build-model", recipe="meanwhile")
    assert built.state.is_completed(), built.state.message
    assert farm.look(left).state.is_scheduled()
    assert farm.look(left).run_count == 0


TAKER = """
import asyncio, sys
from enginefarm.farm.worker.farm_worker import FarmWorker

asyncio.run(FarmWorker(sys.argv[1], ["benchmark"], name="taker", limit=1).start())
"""


@pytest.fixture
def taker(farm: Farm) -> Iterator[str]:
    """A worker that takes benchmarks without having the GPU: its deployment. Ours never do."""
    pool = f"gpu-{SECOND_GPU}"
    deployed = farm.command("deploy", "--gpu", SECOND_GPU)
    assert deployed.returncode == 0, deployed.stderr
    with (farm.root / "taker.log").open("ab") as log:
        worker = subprocess.Popen(
            [sys.executable, "-P", "-c", TAKER, pool],
            env={
                **farm.environment,
                **farm.exported(),
                "ENGINEFARM_CACHE": str(farm.root / "caches" / "taker"),
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            },
            stdout=log,
            stderr=log,
        )
    yield f"benchmark-engine/{pool}"
    worker.terminate()
    worker.wait(30)


def test_a_benchmark_that_cannot_be_says_why_in_its_state(farm: Farm, taker: str) -> None:
    (made,) = publish(farm, "no-gpu-here", SECOND_GPU)
    with pytest.raises(PrefectHTTPStatusError) as refused:
        farm.submit(taker, spec_digest="not-a-digest")
    assert refused.value.response.status_code in (409, 422)
    unknown, here = (
        farm.submit(taker, spec_digest=digest) for digest in ("0" * 64, made.spec_digest)
    )
    for run, name, said in (
        (farm.wait(unknown), "Failed: StoreMissing", "no engine of spec 000000000000"),
        (farm.wait(here), "Failed: HostError", "this machine has no NVIDIA GPU"),
    ):
        assert run.state.name == name, run.state.message
        assert said in run.state.message
        assert "Traceback" not in run.state.message
