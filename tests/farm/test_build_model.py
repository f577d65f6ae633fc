"""The whole road with real parts: Prefect's API, TensorRT-RTX, an S3 server, pull."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

import enginefarm
from enginefarm.digest import sha256_file
from enginefarm.farm.server import address
from enginefarm.farm.server.private import private_api
from enginefarm.planning.outcome import Outcome
from enginefarm.store.embedded import Server
from enginefarm.store.engine_store import EngineStore
from flows.build_model import EnginesMissing, build_model
from tests import tiny_recipe

LABELS = ["t4/fp16", "t4/int8", "a100/fp16", "a100/int8", "l4/fp16", "l4/int8"]


@pytest.fixture(scope="module", autouse=True)
def prefect_api() -> Iterator[None]:
    """As the command line has one; what it sets in the environment is put back."""
    before = dict(os.environ)
    try:
        with private_api() as api:
            api.wait()
            found = {PREFECT_API_URL: os.environ[address.API_URL]}
            with temporary_settings(
                {**found, PREFECT_API_AUTH_STRING: os.environ[address.PASSWORD]}
            ):
                yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return tiny_recipe.write(tmp_path / "recipe")


def run(recipe: Path) -> tuple[str, list[Outcome]]:
    """The final state's name and the outcomes, whether it completed or failed."""
    state = build_model(str(recipe), return_state=True)
    result = state.result(raise_on_failure=False)
    if isinstance(result, EnginesMissing):
        return state.name, result.outcomes
    if isinstance(result, BaseException):
        raise result
    return state.name, result


def command(*arguments: str) -> subprocess.Popen[str]:
    """enginefarm in a process of its own, with an API of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    return subprocess.Popen(
        [sys.executable, "-c", "from enginefarm.cli import main; main()", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_builds_six_engines_once_and_pulls_them_back_byte_for_byte(
    store_environment: EngineStore,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def asked(*_: object, **__: object) -> None:
        pytest.fail("the server was asked for the state of a task, which this process knows")

    monkeypatch.setattr(SyncPrefectClient, "read_task_run", asked)
    name, outcomes = run(recipe)
    assert (name, [row.label for row in outcomes]) == ("Completed", LABELS)
    assert {row.status for row in outcomes} == {"built"}
    manifests = list(store_environment.manifests("tiny"))
    assert len(manifests) == 6
    for manifest in manifests:
        assert manifest.device_verification.status == "pending"
        assert manifest.verification.passed
        assert manifest.build.log is not None
        pulled = enginefarm.pull(
            "tiny",
            gpu=manifest.gpu,
            precision=manifest.precision,
            dest=tmp_path / f"{manifest.spec_digest}.plan",
        )
        assert sha256_file(pulled.path) == manifest.engine.digest
        assert pulled.path.stat().st_size == manifest.engine.size_bytes

    again, cached = run(recipe)
    assert again == "Cached"
    assert {row.status for row in cached} == {"cached"}
    assert [row.engine_digest for row in cached] == [row.engine_digest for row in outcomes]

    moved = tmp_path / "elsewhere"
    shutil.copytree(recipe.parent, moved)
    (moved / "recipe.yaml").rename(moved / "other.yaml")
    assert run(moved / "other.yaml")[0] == "Cached"


def test_over_budget_is_not_published_and_the_rest_is(
    store_environment: EngineStore, tmp_path: Path
) -> None:
    strict = tiny_recipe.write(tmp_path / "strict", accuracy={"int8": {"min_cosine": 1.0}})
    name, outcomes = run(strict)
    assert name == "Failed"
    by_label = {row.label: row for row in outcomes}
    assert by_label["t4/fp16"].status == "built"
    rejected = by_label["t4/int8"]
    assert rejected.status == "rejected"
    assert "scores: cosine" in rejected.reason
    assert "below 1" in rejected.reason
    assert {m.precision for m in store_environment.manifests("tiny")} == {"fp16"}


def test_a_changed_budget_costs_neither_export_nor_reference(
    store_environment: EngineStore, tmp_path: Path
) -> None:
    run(tiny_recipe.write(tmp_path / "a", gpus=["t4"], accuracy={"int8": {"min_cosine": 1.0}}))
    before = {i.key for i in store_environment.objects.list("stages/")}
    _, outcomes = run(tiny_recipe.write(tmp_path / "a", gpus=["t4"]))
    assert [row.status for row in outcomes] == ["cached", "built"]
    # What is kept wide is searched for within the budget, so the conversion is keyed by it
    # (decision 0110). The graph that comes of it is the same here, and so are its figures.
    added = {i.key for i in store_environment.objects.list("stages/")} - before
    assert {key.split("/")[1] for key in added} == {"precision-int8", "plan-int8"}


def test_an_operator_that_tensorrt_lacks_names_its_node_and_fails_alone(
    store_environment: EngineStore, tmp_path: Path
) -> None:
    path = tiny_recipe.write(tmp_path / "odd", gpus=["t4"], precisions=["fp16"])
    model = tiny_recipe.classifier()
    node = onnx.helper.make_node("Det", ["images"], ["determinant"], "odd_one_out")
    model.graph.node.append(node)
    shape = ["batch", 3]
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("determinant", onnx.TensorProto.FLOAT, shape)
    )
    onnx.save(model, path.parent / "model.onnx")
    name, outcomes = run(path)
    assert name == "Failed"
    assert outcomes[0].exit_code == 26  # known from the graph, before anything is built
    assert "odd_one_out" in outcomes[0].reason
    assert "Det" in outcomes[0].reason
    assert list(store_environment.manifests()) == []


def test_nan_weights_stop_before_anything_is_built(
    store_environment: EngineStore, tmp_path: Path
) -> None:
    path = tiny_recipe.write(tmp_path / "nan", gpus=["t4"], precisions=["fp16"])
    model = tiny_recipe.classifier()
    broken = np.full((tiny_recipe.CLASSES,), np.nan, np.float32)
    model.graph.initializer[2].CopyFrom(onnx.numpy_helper.from_array(broken, "bias"))
    onnx.save(model, path.parent / "model.onnx")
    done = command("build", str(path))
    _, errors = done.communicate(timeout=400)
    assert done.returncode in (12, 14)
    assert "bias" in errors
    assert "NaN" in errors
    assert "Traceback" not in errors
    assert list(store_environment.manifests()) == []


def test_ctrl_c_in_the_middle_leaves_no_manifest_and_no_builder(
    store_environment: EngineStore, recipe: Path
) -> None:
    running = command("build", str(recipe))
    deadline = time.monotonic() + 400
    while not builders(running.pid):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=120)
    assert running.returncode == 130
    assert "Traceback" not in errors
    assert "interrupted" in errors
    # What was complete before the interrupt stays; everything there is whole.
    for manifest in store_environment.manifests("tiny"):
        assert store_environment.has_blob(manifest.engine)
    assert not [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(recipe.parent) in " ".join(process.info["cmdline"] or [])
    ]


def builders(pid: int) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended while we looked
            if "enginefarm.building.isolate:build_here" in " ".join(child.cmdline()):
                found.append(child)
    return found


@pytest.mark.parametrize(
    ("variable", "value", "code", "said"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", 42, "access refused"),
        ("ENGINEFARM_STORE", "s3://no-such-bucket/x", 43, "no bucket 'no-such-bucket'"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", 41, "no answer"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_clear_error(
    store_environment: EngineStore,
    s3_server: Server,
    monkeypatch: pytest.MonkeyPatch,
    recipe: Path,
    variable: str,
    value: str,
    code: int,
    said: str,
) -> None:
    monkeypatch.setenv(variable, value)
    done = command("build", str(recipe))
    shown, errors = done.communicate(timeout=400)
    assert (done.returncode, shown) == (code, "")
    assert said in errors
    assert "Traceback" not in errors
    assert s3_server.credentials.secret_key not in errors


def test_a_full_disk_is_one_clear_error_and_nothing_half_published(
    store_environment: EngineStore,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(small)], check=False
    ).returncode:
        pytest.fail("this test mounts a small tmpfs: run it as root, or in a container")
    try:
        monkeypatch.setenv("ENGINEFARM_CACHE", str(small / "cache"))
        done = command("build", str(recipe))
        _, errors = done.communicate(timeout=400)
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert done.returncode == 46, errors
    assert "Traceback" not in errors
    assert list(store_environment.manifests()) == []
