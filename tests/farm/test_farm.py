"""The farm as people use it: real server, workers, S3 and TensorRT-RTX builds."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    DeploymentFilter,
    DeploymentFilterId,
)
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import PrefectHTTPStatusError

from benchmarks.request_counter import counting
from enginefarm.documents.manifest import Manifest
from tests import tiny_recipe
from tests.farm.farm_fixture import CHECKOUT, Farm, until

EXAMPLE = "03_digits"
LABELS = {
    f"digits {gpu}/{precision}" for gpu in ("t4", "a100", "l4") for precision in ("fp16", "int8")
}


@pytest.fixture(scope="module")
def digits(farm: Farm) -> str:
    """The recipe of example 3 in the farm's recipe root; its path there."""
    shutil.copytree(CHECKOUT / "examples" / EXAMPLE, farm.recipes / EXAMPLE)
    return f"{EXAMPLE}/recipe.yaml"


@pytest.fixture(scope="module")
def built(farm: Farm, digits: str) -> object:
    """The run that built the digits recipe."""
    return farm.run("build-model/build-model", recipe=digits)


def test_a_recipe_is_built_by_a_child_run_an_engine_on_its_gpus_pool(
    farm: Farm, built: object
) -> None:
    assert built.state.is_completed(), built.state.message
    children = farm.children(built.id)
    assert {child.name for child in children} == LABELS
    assert {child.state.name for child in children} == {"Built"}
    for child in children:
        label = child.name.split()[1].split("/")[0]
        assert child.work_pool_name == f"gpu-{label}"
    manifests = list(farm.store.manifests("digits"))
    assert {f"digits {one.spec.label}" for one in manifests} == LABELS
    assert all(farm.store.has_blob(one.engine) for one in manifests)


def test_the_parent_shows_its_engines_and_how_to_pull_them(farm: Farm, built: object) -> None:
    with farm.client() as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[built.id]))
        )
    table = next(one for one in found if one.key == "engines-digits" and one.type == "table")
    rows = json.loads(table.data)
    assert {f"digits {gpu}/{precision}" for gpu, precision, *_ in map(dict.values, rows)} == LABELS
    summary = next(one for one in found if one.key == "engines-digits-summary")
    assert "enginefarm pull digits --gpu" in summary.data


def test_each_engine_shows_the_log_of_its_builder(farm: Farm, built: object) -> None:
    child = farm.children(built.id)[0]
    with farm.client() as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[child.id]))
        )
    log = next(one for one in found if (one.key or "").startswith("log-"))
    manifest = next(
        one for one in farm.store.manifests("digits") if child.name.endswith(one.spec.label)
    )
    assert manifest.build.log is not None
    assert manifest.build.log.digest in log.data


def test_a_benchmark_waits_for_a_worker_that_has_the_gpu(farm: Farm, built: object) -> None:
    with farm.client() as client:
        deployment = client.read_deployment_by_name("benchmark-engine/gpu-t4")
        waiting = client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))
        )
    assert {"digits t4/fp16", "digits t4/int8"} <= {run.name for run in waiting}
    assert {run.state.type.value for run in waiting} == {"SCHEDULED"}


def test_a_gpu_without_a_worker_is_built_on_the_cpu_pool_and_its_benchmark_waits(
    farm: Farm,
) -> None:
    tiny_recipe.write(
        farm.recipes / "absent", name="absent", salt="absent", gpus=["a10g"], precisions=["fp16"]
    )

    def benchmarks() -> list[tuple[str, str | None, str | None, str]]:
        with farm.client() as client:
            deployment = client.read_deployment_by_name("benchmark-engine/gpu-a10g")
            runs = client.read_flow_runs(
                deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))
            )
        return [
            (run.name, run.work_pool_name, run.work_queue_name, run.state.type.value)
            for run in runs
        ]

    farm.start_worker("cpu", "--cpu")
    try:
        # Two at once: either would leave a benchmark.
        ids = [farm.submit("build-model/build-model", recipe="absent") for _ in range(2)]
        for ended in [farm.wait(one) for one in ids]:
            assert ended.state.is_completed(), ended.state.message
        pools = {child.work_pool_name for one in ids for child in farm.children(one)}
        assert pools == {"cpu"}
        assert [one.spec.label for one in farm.store.manifests("absent")] == ["a10g/fp16"]
        left = [("absent a10g/fp16", "gpu-a10g", "benchmark", "SCHEDULED")]
        assert benchmarks() == left
        assert farm.run("build-model/build-model", recipe="absent").state.name == "Cached"
        assert benchmarks() == left
    finally:
        farm.stop("cpu")


def test_the_second_time_nothing_runs(farm: Farm, built: object, digits: str) -> None:
    again = farm.run("build-model/build-model", recipe=digits)
    assert again.state.name == "Cached"
    assert farm.children(again.id) == []


def test_the_nightly_fires_at_its_time_and_rebuilds_nothing(farm: Farm, built: object) -> None:
    with farm.client() as client:
        nightly = client.read_deployment_by_name("nightly-rebuild/nightly-rebuild")
        schedule = nightly.schedules[0]
        assert (schedule.schedule.cron, schedule.schedule.timezone) == ("0 2 * * *", "UTC")
        assert schedule.active
        # cron knows no seconds, and the server looks every five for what is due.
        soon = datetime.now(UTC) + timedelta(seconds=75)
        client.update_deployment_schedule(
            nightly.id,
            schedule.id,
            schedule=CronSchedule(cron=f"{soon.minute} {soon.hour} * * *", timezone="UTC"),
            parameters={"folder": EXAMPLE},
        )

        def tonight() -> list[object]:
            return [
                run
                for run in client.read_flow_runs(
                    deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[nightly.id]))
                )
                if run.expected_start_time <= datetime.now(UTC) and run.auto_scheduled
            ]

        until(lambda: bool(tonight()), "the nightly is due")
        run = farm.wait(tonight()[0].id)
    assert run.state.name == "Cached", run.state.message
    assert farm.children(run.id) == []
    redeployed = farm.command("deploy")
    assert redeployed.returncode == 0, redeployed.stderr
    with farm.client() as client:
        nightly = client.read_deployment_by_name("nightly-rebuild/nightly-rebuild")
    assert [one.schedule.cron for one in nightly.schedules] == ["0 2 * * *"]


def test_one_engine_that_fails_does_not_stop_the_others(farm: Farm) -> None:
    tiny_recipe.write(
        farm.recipes / "half",
        name="half",
        salt="half",  # else it is another test's spec, and its engine is there
        gpus=["a100"],
        accuracy={"int8": {"min_cosine": 1.0, "max_relative_l2": 0.0}},
    )
    run = farm.run("build-model/build-model", recipe="half")
    assert run.state.is_failed()
    assert "a100/int8 rejected: accuracy" in run.state.message
    assert [one.spec.label for one in farm.store.manifests("half")] == ["a100/fp16"]


def test_wrong_parameters_are_refused_before_anything_runs(farm: Farm) -> None:
    for parameters in ({"gpus": ["gtx480"]}, {"precisions": ["fp3"]}, {"recipe": ""}):
        with pytest.raises(PrefectHTTPStatusError) as refused:
            farm.submit("build-model/build-model", **{"recipe": "half", **parameters})
        assert refused.value.response.status_code in (409, 422)


@pytest.mark.parametrize("path", ["../elsewhere/recipe.yaml", "/etc/passwd", "link/recipe.yaml"])
def test_a_recipe_outside_the_roots_is_refused(farm: Farm, tmp_path: Path, path: str) -> None:
    tiny_recipe.write(farm.root / "elsewhere")
    link = farm.recipes / "link"
    if not link.exists():
        link.symlink_to(farm.root / "elsewhere")
    run = farm.run("build-model/build-model", recipe=path)
    assert run.state.is_failed()
    assert "outside the folders that recipes may come from" in run.state.message


def test_many_ask_for_one_spec_and_one_manifest_is_published(farm: Farm) -> None:
    tiny_recipe.write(
        farm.recipes / "rush", name="rush", salt="rush", gpus=["a100"], precisions=["fp16"]
    )
    with ThreadPoolExecutor(4) as pool:
        ids = list(
            pool.map(lambda _: farm.submit("build-model/build-model", recipe="rush"), range(4))
        )
    ended = [farm.wait(one, patience_s=500) for one in ids]
    assert {run.state.type.value for run in ended} == {"COMPLETED"}
    assert len(list(farm.store.manifests("rush"))) == 1
    built = [one for run in ended for one in farm.children(run.id)]
    manifest: Manifest = next(iter(farm.store.manifests("rush")))
    assert {one.state.message for one in built if one.state.name == "Built"} == {
        manifest.engine.digest
    }


def test_a_run_asks_neither_for_the_servers_version_nor_for_tokens(farm: Farm) -> None:
    """Its worker knows both."""
    with counting(farm.port) as (url, asked):
        farm.start_worker("asking", "--gpu", "l40", "--cross", PREFECT_API_URL=url)
        before = asked.copy()
        for name in ("asked", "asked-again"):  # at its first run the worker itself asks
            before = asked.copy()
            tiny_recipe.write(
                farm.recipes / name, name=name, salt=name, gpus=["l40"], precisions=["fp16"]
            )
            assert farm.run("build-model/build-model", recipe=name).state.is_completed()
        farm.stop("asking")
    during = asked - before
    assert during["POST /flow_runs/ID/set_state"] >= 3, "the run's requests are counted"
    assert not [path for path in during if "csrf" in path or "version" in path]


def test_workers_are_listed_with_what_they_offer(farm: Farm) -> None:
    shown = json.loads(farm.command("workers", "--json").stdout)
    by_name = {row["card"]["name"]: row for row in shown}
    assert {name for name, row in by_name.items() if row["online"]} == {
        "control",
        "t4",
        "a100",
        "l4",
    }
    assert by_name["t4"]["card"]["toolchains"][0]["name"] == "tensorrt-rtx"
    assert by_name["control"]["card"]["toolchains"] == []


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "said"),
    [
        (("worker", "--gpu", "t4"), {}, 60, "this machine has no NVIDIA GPU"),
        (("worker", "--gpu", "gtx480", "--cross"), {}, 11, "no GPU is labeled 'gtx480'"),
        (("deploy", "--gpu", "gtx480"), {}, 11, "no GPU is labeled 'gtx480'"),
        (("worker", "--gpu", "t4", "--cpu"), {}, 2, "exactly one of"),
        (
            ("worker", "--cpu"),
            {"PREFECT_API_URL": "http://127.0.0.1:9/api"},
            70,
            "does not answer",
        ),
        (
            ("worker", "--cpu"),
            {"ENGINEFARM_STORE": "s3://no-such-bucket/x"},
            43,
            "no bucket 'no-such-bucket'",
        ),
    ],
)
def test_bad_input_is_one_clear_error(
    farm: Farm, arguments: tuple[str, ...], environment: dict[str, str], code: int, said: str
) -> None:
    ended = farm.command(*arguments, **environment)
    assert ended.returncode == code, ended.stderr
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_server_that_is_too_old_is_refused(farm: Farm) -> None:
    """Only its answer to the version question stands in: an old server is not installed here."""

    class Old(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'"3.1.0"'
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Old)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/api"
    ended = farm.command("deploy", PREFECT_API_URL=url)
    server.shutdown()
    assert ended.returncode == 70, ended.stderr
    assert "is 3.1.0; 3.8.0 or newer is needed" in ended.stderr
