"""What an inference host does beside pulling: trust, offline, watch, doctor, Triton."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_onnx

import enginefarm
from enginefarm import cli
from enginefarm.building import isolate
from enginefarm.documents.manifest import Manifest
from enginefarm.documents.spec import BlobRef
from enginefarm.errors import EnginefarmError, NoEngineFits, SignatureRejected, StoreMissing
from enginefarm.pulling.watch import watch
from enginefarm.release import promote as release
from enginefarm.store import layout, signing
from enginefarm.store.cache import BlobCache
from enginefarm.store.engine_store import EngineStore
from enginefarm.toolchains import BuildRequest, toolchain

Publish = Callable[..., Manifest]

pytestmark = pytest.mark.usefixtures("no_gpu_here")


def promote(store: EngineStore) -> None:
    release.promote(store, "model", "production", allow_pending=True)


# Trust


@pytest.fixture
def farm_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A key pair; this host trusts it."""
    public, _ = signing.generate(tmp_path / "farm.pem")
    monkeypatch.setenv("ENGINEFARM_TRUST", str(public))
    return tmp_path / "farm.pem"


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[BlobRef]:
    """Which blobs were asked of the store."""
    seen: list[BlobRef] = []
    ensure = BlobCache.ensure

    def noted(self: BlobCache, store: EngineStore, ref: BlobRef) -> Path:
        seen.append(ref)
        return ensure(self, store, ref)

    monkeypatch.setattr(BlobCache, "ensure", noted)
    return seen


def test_an_unsigned_engine_is_refused_before_its_bytes_are_touched(
    publish: Publish, farm_key: Path, fetched: list[BlobRef]
) -> None:
    publish()
    with pytest.raises(SignatureRejected, match="t4/fp16") as caught:
        enginefarm.pull("model", gpu="t4")
    assert caught.value.why == "it is not signed"
    assert fetched == []


def test_a_signed_engine_is_pulled_and_so_is_one_that_was_signed_later(
    publish: Publish, farm_key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(precision="int8")
    monkeypatch.setenv("ENGINEFARM_SIGNING_KEY", str(farm_key))
    publish()
    assert enginefarm.pull("model", gpu="t4", precision="fp16")
    with pytest.raises(SignatureRejected):
        enginefarm.pull("model", gpu="t4", precision="int8")
    assert cli.run(["sign", "model", "--vouch"]) == 0
    assert enginefarm.pull("model", gpu="t4", precision="int8")


def test_with_a_trust_key_the_best_signed_engine_is_taken_and_that_is_said(
    publish: Publish, farm_key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as signing_farm:
        signing_farm.setenv("ENGINEFARM_SIGNING_KEY", str(farm_key))
        publish(b"signed")
    publish(b"unsigned", salt="2", minutes=1)
    pulled = enginefarm.pull("model", gpu="t4")
    assert pulled.path.read_bytes() == b"signed"
    assert any("it is not signed" in caveat for caveat in pulled.candidate.caveats)


def url_line(capsys: pytest.CaptureFixture[str], precision: str) -> str:
    """What the farm prints for a host without credentials."""
    capsys.readouterr()
    assert cli.run(["url", "model", "--gpu", "t4", "--precision", precision]) == 0
    return capsys.readouterr().out.strip()


def test_a_url_brings_the_signature_along_and_it_is_checked_first(
    publish: Publish,
    farm_key: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as farm:
        farm.delenv("ENGINEFARM_TRUST")
        publish(b"unsigned", precision="int8")
        farm.setenv("ENGINEFARM_SIGNING_KEY", str(farm_key))
        publish(b"signed")
        signed, unsigned = url_line(capsys, "fp16"), url_line(capsys, "int8")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "ENGINEFARM_STORE"):
        monkeypatch.delenv(name)
    filled: list[BlobRef] = []
    fill = BlobCache.fill

    def noted(self: BlobCache, source: object, ref: BlobRef) -> Path:
        filled.append(ref)
        return fill(self, source, ref)  # type: ignore[arg-type]

    monkeypatch.setattr(BlobCache, "fill", noted)

    def refused(line: str) -> str:
        assert cli.run(["pull", "--url", line, "--dest", str(tmp_path / "no.plan")]) == 51
        return capsys.readouterr().err

    assert "has no signature" in refused(unsigned)
    # Another engine's URL and digest with the signed one's proof.
    proof = signed[signed.index("&manifest=") :]
    assert "the signature is for another engine" in refused(unsigned + proof)
    signing.generate(tmp_path / "other.pem")
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("ENGINEFARM_TRUST", str(tmp_path / "other.pub.pem"))
        assert "it is signed by" in refused(signed)
    assert filled == []
    assert cli.run(["pull", "--url", signed, "--dest", str(tmp_path / "yes.plan")]) == 0
    assert (tmp_path / "yes.plan").read_bytes() == b"signed"
    expired = signed.replace("Signature%3D", "Signature%3D0")
    assert cli.run(["pull", "--url", expired]) == 42
    assert "Signature%" not in capsys.readouterr().err


def test_a_manifest_that_was_changed_in_the_store_is_refused(
    publish: Publish,
    farm_key: Path,
    store_environment: EngineStore,
    monkeypatch: pytest.MonkeyPatch,
    fetched: list[BlobRef],
) -> None:
    monkeypatch.setenv("ENGINEFARM_SIGNING_KEY", str(farm_key))
    manifest = publish()
    evil = store_environment.put_bytes(b"evil engine")
    changed = manifest.model_copy(update={"engine": evil})
    store_environment.objects.put(layout.manifest(manifest.spec_digest), changed.canonical_json())
    with pytest.raises(SignatureRejected):
        enginefarm.pull("model", gpu="t4")
    assert fetched == []


def test_verify_checks_a_channel_and_names_what_is_wrong(
    publish: Publish,
    farm_key: Path,
    store_environment: EngineStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ENGINEFARM_SIGNING_KEY", str(farm_key))
    signed = publish()
    promote(store_environment)
    assert cli.run(["verify", "model@production", "--bytes"]) == 0
    assert "signed by" in capsys.readouterr().out
    store_environment.objects.put(layout.blob(signed.engine), b"damage")
    assert cli.run(["verify", "model@production"]) == 0
    assert cli.run(["verify", "model@production", "--bytes"]) == 44
    monkeypatch.delenv("ENGINEFARM_SIGNING_KEY")
    publish(b"other", label="l4")
    assert cli.run(["verify", "model"]) == 51
    assert "1 of 2" in capsys.readouterr().err
    monkeypatch.delenv("ENGINEFARM_TRUST")
    assert cli.run(["verify", "model"]) == 51


# Channels and offline


def test_pull_by_channel_gives_what_the_channel_names(
    publish: Publish, store_environment: EngineStore, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(b"v1")
    assert cli.run(["promote", "model", "--allow-pending", "--why", "first"]) == 0
    publish(b"v2", salt="2", minutes=1)
    assert enginefarm.pull("model@production", gpu="t4").path.read_bytes() == b"v1"
    assert enginefarm.pull("model", gpu="t4").path.read_bytes() == b"v2"
    assert cli.run(["promote", "model", "--allow-pending"]) == 0
    assert enginefarm.pull("model@production", gpu="t4").path.read_bytes() == b"v2"
    assert cli.run(["rollback", "model", "production"]) == 0
    assert enginefarm.pull("model@production", gpu="t4").path.read_bytes() == b"v1"
    capsys.readouterr()
    assert cli.run(["channel", "model", "production", "--json"]) == 0
    log = json.loads(capsys.readouterr().out)
    assert [one["action"] for one in log] == ["rollback", "promote", "promote"]
    assert log[-1]["why"] == "first"
    assert cli.run(["pull", "model@nowhere", "--gpu", "t4"]) == 43
    assert cli.run(["promote", "model", "--dry-run", "--allow-pending"]) == 0
    assert cli.run(["promote", "model"]) == 55


def test_offline_asks_nothing_of_the_store(
    publish: Publish,
    store_environment: EngineStore,
    farm_key: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ENGINEFARM_SIGNING_KEY", str(farm_key))
    publish(b"v1")
    promote(store_environment)
    publish(b"v2", salt="2", minutes=1)
    enginefarm.pull("model@production", gpu="t4")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for name in ("model", "model@production"):
        assert enginefarm.pull(name, gpu="t4", offline=True).path.read_bytes() == b"v1"
    for name in ("other", "model@candidate"):
        with pytest.raises(StoreMissing, match="in the cache"):
            enginefarm.pull(name, gpu="t4", offline=True)
    with pytest.raises(NoEngineFits):
        enginefarm.pull("model", gpu="h100", offline=True)


def test_offline_still_checks_signatures(
    publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish()
    enginefarm.pull("model", gpu="t4")
    public, _ = signing.generate(tmp_path / "key.pem")
    monkeypatch.setenv("ENGINEFARM_TRUST", str(public))
    with pytest.raises(SignatureRejected):
        enginefarm.pull("model", gpu="t4", offline=True)


# Watch


def test_watch_swaps_in_one_step_and_outlives_a_store_that_is_away(
    publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, stop = tmp_path / "served", threading.Event()
    swaps: list[str] = []
    errors: list[str] = []
    publish(b"v1" * 1000)

    def looked(manifest: Manifest, swapped: bool) -> None:
        if swapped:
            swaps.append(manifest.engine.digest)

    def failed(error: EnginefarmError) -> None:
        errors.append(type(error).__name__)

    thread = threading.Thread(
        target=watch,
        args=(lambda: enginefarm.pull("model", gpu="t4"), folder),
        kwargs={
            "every_s": 0.05,
            "stop": stop,
            "on_look": looked,
            "on_error": failed,
        },
    )
    thread.start()
    try:
        wait_for(lambda: len(swaps) == 1)
        seen: set[bytes] = set()
        reading = threading.Event()

        def read() -> None:
            while not reading.is_set():
                version = (folder / "current").resolve()
                plan = (version / "model.plan").read_bytes()
                said = Manifest.model_validate_json((version / "manifest.json").read_bytes())
                assert said.engine.size_bytes == len(plan)
                seen.add(plan[:2])

        reader = threading.Thread(target=read)
        reader.start()
        publish(b"v2" * 2000, salt="2", minutes=1)
        wait_for(lambda: len(swaps) == 2)
        endpoint = "http://127.0.0.1:9"
        with pytest.MonkeyPatch.context() as away:
            away.setenv("AWS_ENDPOINT_URL", endpoint)
            away.setenv("AWS_MAX_ATTEMPTS", "1")
            wait_for(lambda: bool(errors))
        publish(b"v3" * 10, salt="3", minutes=2)
        wait_for(lambda: len(swaps) == 3)
        time.sleep(0.1)
        reading.set()
        reader.join()
    finally:
        stop.set()
        thread.join()
    assert seen == {b"v1", b"v2", b"v3"}
    assert set(errors) == {"StoreUnavailable"}
    assert len(list((folder / "versions").iterdir())) == 2


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


# Doctor


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real TensorRT-RTX plan for T4."""
    folder = tmp_path_factory.mktemp("plan")
    identity = toolchain("tensorrt-rtx").identity()
    request = BuildRequest(
        spec=tiny_onnx.spec(identity, gpu="t4"),
        onnx=tiny_onnx.convolutions(folder / "model.onnx"),
        work_dir=folder,
    )
    return isolate.build(request, toolchain="tensorrt-rtx").plan


def published(publish: Publish, plan: Path, dest: Path) -> Path:
    identity = toolchain("tensorrt-rtx").identity()
    publish(plan.read_bytes(), toolchain="tensorrt-rtx", build=identity.build, cuda=identity.cuda)
    return enginefarm.pull("model", gpu="t4", dest=dest / "model.plan").path


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, str], str]:
    code = cli.run(["doctor", *arguments, "--json"])
    out, err = capsys.readouterr()
    return code, {one["subject"]: one["verdict"] for one in json.loads(out)}, err


def test_doctor_says_that_a_pulled_plan_fits(
    publish: Publish, plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = published(publish, plan, tmp_path)
    code, said, _ = doctor(capsys, str(path), "--gpu", "t4")
    assert code == 0
    assert said["bytes"] == said["header"] == said["gpu"] == "ok"
    assert said["driver"] == "unknown"


def test_doctor_finds_the_manifest_of_a_plan_in_the_cache(
    publish: Publish, plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published(publish, plan, tmp_path)
    copied = tmp_path / "renamed.plan"
    shutil.copy(plan, copied)
    assert doctor(capsys, str(copied), "--gpu", "t4")[1]["bytes"] == "ok"


def test_doctor_refuses_another_gpu_a_cut_plan_and_a_changed_one(
    publish: Publish, plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = published(publish, plan, tmp_path)
    code, said, err = doctor(capsys, str(path), "--gpu", "l4")
    assert (code, said["header"], said["gpu"]) == (50, "fails", "fails")
    assert "the host has 8.9" in err
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    code, said, _ = doctor(capsys, str(path), "--gpu", "t4")
    assert (code, said["bytes"], said["header"]) == (50, "fails", "ok")
    path.write_bytes(data[:-100])
    code, said, err = doctor(capsys, str(path), "--gpu", "t4")
    assert (code, said["header"]) == (50, "fails")
    assert "cut short" in err


def test_doctor_refuses_another_runtime_s_build(
    publish: Publish,
    plan: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = published(publish, plan, tmp_path)
    monkeypatch.setenv("ENGINEFARM_TENSORRT_RTX", "1.8.0.1")
    code, said, err = doctor(capsys, str(path), "--gpu", "t4")
    assert (code, said["runtime"]) == (50, "fails")
    assert "the host has 1.8.0.1" in err


def test_doctor_of_the_host_and_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    code, said, _ = doctor(capsys)
    assert code == 0
    assert said["GPU"] == "unknown"
    assert said["cache"] == "ok"
    assert cli.run(["doctor", "/nowhere.plan"]) == 2


# Triton


def test_triton_repo_of_a_channel(
    publish: Publish,
    store_environment: EngineStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for label in ("t4", "a100"):
        publish(label.encode(), label=label)
    promote(store_environment)
    assert cli.run(["triton-repo", "model@production", str(tmp_path / "repo")]) == 0
    assert "tritonserver --model-repository=" in capsys.readouterr().out
    config = (tmp_path / "repo" / "model" / "config.pbtxt").read_text()
    for name in ("t4", "a100"):
        (path,) = (tmp_path / "repo" / "model" / "1").glob(f"{name}-*.plan")
        assert path.read_bytes() == name.encode()
        assert path.name in config
    target = f"{store_environment.url}-triton"
    assert cli.run(["triton-repo", "model@production", target, "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert "model/config.pbtxt" in files


def test_triton_repo_refuses_portable_engines(publish: Publish) -> None:
    publish(toolchain="tensorrt-rtx", build="1.7.1.116")
    assert cli.run(["triton-repo", "model", "/tmp/never"]) == 26
