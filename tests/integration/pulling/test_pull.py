"""Pull, against a real S3 server: the engine that fits, whole, checked, and explained."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

import enginefarm
from enginefarm import cli
from enginefarm.documents.manifest import Manifest
from enginefarm.documents.spec import BlobRef
from enginefarm.errors import (
    CorruptBlob,
    HostError,
    NoEngineFits,
    StoreMissing,
    StoreUnavailable,
)
from enginefarm.store import layout, open_store
from enginefarm.store.cache import BlobCache
from enginefarm.store.engine_store import EngineStore

Publish = Callable[..., Manifest]

pytestmark = pytest.mark.usefixtures("no_gpu_here")


def test_pull_gives_the_bytes_that_were_published(publish: Publish, tmp_path: Path) -> None:
    manifest = publish(os.urandom(1000))
    pulled = enginefarm.pull("model", gpu="t4")
    assert pulled.manifest == manifest
    assert not pulled.cached
    assert pulled.path.is_relative_to(tmp_path / "cache")
    again = enginefarm.pull("model", gpu="t4")
    assert again.cached
    assert again.path == pulled.path
    assert again.path.name.startswith("model-t4-fp16-")


def test_pull_downloads_nothing_twice(publish: Publish, store_environment: EngineStore) -> None:
    manifest = publish()
    enginefarm.pull("model", gpu="t4")
    store_environment.objects.delete(layout.blob(manifest.engine))
    assert enginefarm.pull("model", gpu="t4").path.read_bytes() == b"engine"


def test_dest_is_a_file_or_a_folder_and_a_copy(publish: Publish, tmp_path: Path) -> None:
    publish()
    named = enginefarm.pull("model", gpu="t4", dest=tmp_path / "new" / "model.plan")
    assert named.path == tmp_path / "new" / "model.plan"
    inside = enginefarm.pull("model", gpu="t4", dest=tmp_path)
    assert inside.path.parent == tmp_path
    named.path.write_bytes(b"changed by its owner")
    assert enginefarm.pull("model", gpu="t4").path.read_bytes() == b"engine"


def test_the_precision_asked_for(publish: Publish) -> None:
    publish()
    publish(b"int8", precision="int8")
    assert enginefarm.pull("model", gpu="t4", precision="int8").path.read_bytes() == b"int8"


def test_nothing_fits_is_an_error_with_every_reason(publish: Publish) -> None:
    publish()
    publish(label="l4", precision="int8")
    with pytest.raises(NoEngineFits) as caught:
        enginefarm.pull("model", gpu="h100")
    assert "t4/fp16" in caught.value.why
    assert "l4/int8" in caught.value.why
    assert "h100" in caught.value.what


def test_an_unknown_name_lists_the_recipes(publish: Publish) -> None:
    publish()
    with pytest.raises(StoreMissing, match="'modle'") as caught:
        enginefarm.pull("modle", gpu="t4")
    assert "model" in caught.value.fix


@pytest.mark.usefixtures("store_environment")
def test_no_gpu_and_none_named() -> None:
    with pytest.raises(HostError):
        enginefarm.pull("model")


def test_a_corrupted_engine_is_refused_and_never_reaches_the_cache(
    publish: Publish, store_environment: EngineStore, tmp_path: Path
) -> None:
    manifest = publish(b"x" * 5000)
    store_environment.objects.put(layout.blob(manifest.engine), b"y" * 5000)
    with pytest.raises(CorruptBlob):
        enginefarm.pull("model", gpu="t4", dest=tmp_path / "model.plan")
    assert not (tmp_path / "model.plan").exists()
    assert not BlobCache().has(manifest.engine)


# The command line


def run(*arguments: str) -> int:
    return cli.run(list(arguments))


def test_the_command_prints_the_path_alone(
    publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    publish()
    assert run("pull", "model", "--gpu", "t4") == 0
    out, err = capsys.readouterr()
    assert Path(out.strip()).read_bytes() == b"engine"
    assert "fit: exact gpu" in err
    assert "not yet verified on a GPU" in err


def test_json_is_json_and_nothing_else(
    publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = publish()
    assert run("pull", "model", "--gpu", "t4", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["manifest"]["spec_digest"] == manifest.spec_digest
    assert said["fit"] == "exact_gpu"
    assert Path(said["path"]).exists()
    assert run("list", "--json") == 0
    assert [one["recipe"] for one in json.loads(capsys.readouterr().out)] == ["model"]
    assert run("show", manifest.spec_digest[:10], "--json") == 0
    assert Manifest.model_validate_json(capsys.readouterr().out) == manifest


def test_explain_lists_every_engine_with_its_rank_or_its_reason(
    publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    publish()
    publish(label="l4")
    assert run("pull", "model", "--gpu", "t4", "--explain", "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["manifest"]["recipe"] == "model"
    assert "fits: exact gpu" in err
    assert "built for l4" in err
    assert run("pull", "model", "--gpu", "h100", "--explain") == 50
    assert "fits:" not in capsys.readouterr().err


def test_exit_codes(publish: Publish, capsys: pytest.CaptureFixture[str]) -> None:
    publish()
    assert run("pull", "model", "--gpu", "h100") == 50
    assert run("pull", "model", "--gpu", "nonsense") == 11
    assert run("pull", "model") == 60
    assert run("pull", "other", "--gpu", "t4") == 43
    assert run("show", "ffffffffff") == 43
    assert run("pull") == 2
    assert "Traceback" not in capsys.readouterr().err


def test_list_and_show_by_name(publish: Publish, capsys: pytest.CaptureFixture[str]) -> None:
    publish()
    newer = publish(b"newer", graph=b"graph", salt="2", minutes=5)
    assert run("list", "model", "--gpu", "t4") == 0
    assert newer.spec_digest[:12] in capsys.readouterr().out
    assert run("list", "modle") == 43
    assert "did you mean model?" in capsys.readouterr().err
    assert run("show", "model", "--json") == 0
    assert json.loads(capsys.readouterr().out)["spec_digest"] == newer.spec_digest
    assert run("show", "model") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"model t4/fp16 {newer.spec_digest[:12]}\n")
    assert f"engine              {newer.engine.digest[:12]}, 0.0 MB" in said
    assert "engine verified on  no GPU yet: pending" in said
    assert "cosine" in said


ASKS_FOR_A_RECIPE = (
    "list",
    "show",
    "pull --gpu t4",
    "url --gpu t4",
    "package",
    "rollout",
    "triton-repo",
    "promote",
    "channel",
    "bom",
    "fleet",
    "cost --prices prices.toml",
    "reproduce",
)


@pytest.mark.parametrize("command", ASKS_FOR_A_RECIPE)
def test_a_recipe_that_the_store_lacks_is_named_alike_by_every_command(
    publish: Publish,
    capsys: pytest.CaptureFixture[str],
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish()
    monkeypatch.chdir(tmp_path)
    Path("prices.toml").write_text('currency = "USD"\n[per_hour]\nt4 = 1\n')
    folder = ("out",) if command in ("rollout", "triton-repo", "reproduce") else ()
    assert run(*command.split(), "modle", *folder) == 43
    said = capsys.readouterr().err
    assert said.startswith(f"error: {command.split()[0]}: the store")
    assert "has no recipe 'modle'" in said
    assert "its recipes are: model" in said
    assert "did you mean model?" in said


@pytest.mark.parametrize("command", ["pull", "url"])
def test_an_engine_that_does_not_fit_is_told_in_the_name_of_the_command(
    publish: Publish, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    publish()
    assert run(command, "model", "--gpu", "h100") == 50
    assert capsys.readouterr().err.startswith(f"error: {command}: none of the 1 engines")


@pytest.mark.parametrize("command", ["promote model", "rollout model repository"])
def test_a_gate_refuses_in_the_name_of_the_command(
    publish: Publish, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    publish()
    assert run(*command.split()) == 55
    assert f"error: {command.split()[0]} model@production: refused" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["rollout model repository", "triton-repo model repository"])
def test_a_name_that_triton_refuses_is_told_in_the_name_of_the_command(
    publish: Publish, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    publish(on_device="passed")
    assert run(*command.split(), "--as", "a/b") == 2
    assert capsys.readouterr().err.startswith(f"error: {command.split()[0]}: 'a/b' cannot be")


def test_a_channel_of_a_recipe_that_the_store_lacks(
    publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    publish()
    for command in (
        ("pull", "modle@production", "--gpu", "t4"),
        ("rollback", "modle", "production"),
    ):
        assert run(*command) == 43
        said = capsys.readouterr().err
        assert said.startswith(f"error: {command[0]}: the store")
        assert "did you mean model?" in said


def test_an_engine_that_a_known_recipe_lacks_is_named_as_such(
    publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    publish()
    assert run("show", "model", "--gpu", "h100") == 43
    assert "has no such engine of 'model'" in capsys.readouterr().err


def test_pull_loads_no_training_library(publish: Publish) -> None:
    publish()
    code = (
        "import sys; from enginefarm import cli; "
        "assert cli.run(['pull', 'model', '--gpu', 't4']) == 0; "
        "heavy = {'torch', 'prefect', 'onnx', 'pandas', 'tensorrt', 'numpy'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_ctrl_c_in_the_middle_leaves_no_partial_engine(
    publish: Publish, store_environment: EngineStore, tmp_path: Path
) -> None:
    manifest = publish(os.urandom(40 << 20))
    dest = tmp_path / "out" / "model.plan"
    code = (
        "import sys\nfrom enginefarm import cli\nfrom enginefarm.progress import SINK\n"
        "import enginefarm.store.download as download\n"
        "stream = download.Download._stream\n"
        "def slow(self, start, end):\n"
        "    print('moving', flush=True); self._stop.wait(5); return stream(self, start, end)\n"
        "download.Download._stream = slow\n"
        f"sys.exit(cli.run(['pull', 'model', '--gpu', 't4', '--json', '--dest', '{dest}']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert not dest.exists()
    assert not BlobCache().has(manifest.engine)
    assert enginefarm.pull("model", gpu="t4", dest=dest).path.read_bytes()


def test_a_store_that_is_down_is_one_error(
    publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreUnavailable):
        enginefarm.pull("model", gpu="t4")


def ensure(root: str, ref: BlobRef) -> str:
    return str(BlobCache(Path(root)).ensure(open_store(), ref))


def test_many_processes_share_one_cache_and_one_download(
    publish: Publish, tmp_path: Path, store_environment: EngineStore
) -> None:
    ref = publish(os.urandom(20 << 20)).engine
    with ProcessPoolExecutor(6) as pool:
        paths = set(pool.map(ensure, [str(tmp_path / "shared")] * 12, [ref] * 12))
    assert len(paths) == 1
    assert BlobCache(tmp_path / "shared").has(ref)
    left = [path.name for path in (tmp_path / "shared").rglob("*") if path.is_file()]
    assert sorted(left) == [ref.digest, f"{ref.digest}.lock", f"{ref.digest}.seen"]


def test_many_threads_share_one_cache(publish: Publish, tmp_path: Path) -> None:
    ref = publish(os.urandom(3 << 20)).engine
    cache = BlobCache(tmp_path / "threads")
    store = open_store()
    with ThreadPoolExecutor(16) as pool:
        paths = set(pool.map(lambda _: cache.ensure(store, ref), range(64)))
    assert len(paths) == 1


@pytest.mark.parametrize("command", ["list", "show", "channel", "fleet", "bom"])
def test_a_name_that_the_store_does_not_have_is_an_error_of_every_command(
    command: str, publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    publish()
    assert cli.run([command, "MODEL"]) == 43
    assert "did you mean model?" in capsys.readouterr().err
    assert cli.run([command, ""]) == 2
    assert "''" in capsys.readouterr().err
