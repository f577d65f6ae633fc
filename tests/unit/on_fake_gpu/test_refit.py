"""New weights in a plan that exists, on the farm and on a host: a fake TensorRT, a real store."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_onnx
from fake_builds import made
from onnx import TensorProto, helper, numpy_helper
from refit_jobs import job
from tiny_plans import LARGE, SMALL, faulty

import enginefarm
from enginefarm.building import isolate
from enginefarm.building import native as native_build
from enginefarm.building.job import Job
from enginefarm.documents.manifest import Manifest
from enginefarm.documents.spec import ToolchainId
from enginefarm.host.detect import NvmlGpu
from enginefarm.names import TOOLCHAINS
from enginefarm.release import fsck
from enginefarm.release.gc import Policy, collect
from enginefarm.store import layout, signing
from enginefarm.store.cache import BlobCache
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.site import Site
from enginefarm.toolchains import BuildOutput, BuildRequest, tensorrt

TOOLCHAIN = ToolchainId(name="tensorrt", build="10.16.1.11", cuda="13", os="linux", arch="x86_64")
A100 = NvmlGpu(name="NVIDIA A100", compute_capability="8.0", driver="580.1")
X = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)

Publish = Callable[..., Manifest]


@pytest.fixture(autouse=True)
def builds(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Builds in this process, and lists them: a child cannot be told of this GPU."""
    done: list[str] = []

    def build(request: BuildRequest, **_: Any) -> BuildOutput:
        done.append(request.spec.onnx_digest)
        return tensorrt.TensorRT().build(request)

    monkeypatch.setattr(isolate, "build", build)
    for module in (tensorrt, native_build):
        monkeypatch.setattr(module, "first_gpu", lambda: A100)
    return done


@pytest.fixture
def site(store_environment: EngineStore, tmp_path: Path) -> Site:
    return Site(store_environment, BlobCache(tmp_path / "farm"))


@pytest.fixture
def publish(site: Site, tmp_path: Path) -> Publish:
    """Builds and publishes y = clip(x @ w + b) with these weights."""

    def put(w: float = 1, b: float = 1, limit: float = 50, **faults: str) -> Manifest:
        return made(site, job_of(site, tmp_path, w, b, limit, **faults))

    return put


def job_of(site: Site, folder: Path, w: float, b: float, limit: float, **faults: str) -> Job:
    weights = {
        "w": w * np.eye(4, dtype=np.float32),
        "b": np.full(4, b, np.float32),
        "low": np.float32(-limit),
        "high": np.float32(limit),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], "matmul"),
        helper.make_node("Add", ["m", "b"], ["a"], "add"),
        helper.make_node("Clip", ["a", "low", "high"], ["y"], "clip"),
    ]
    path = tiny_onnx.save(
        folder / "model.onnx",
        nodes,
        [tiny_onnx.value("x", ["n", 4], TensorProto.FLOAT)],
        [tiny_onnx.value("y", ["n", 4], TensorProto.FLOAT)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    y = np.clip(w * X + b, -limit, limit).astype(np.float32)
    np.savez(folder / "reference.npz", **{"0000/input/x": X, "0000/output/y": y})
    spec = tiny_onnx.spec(TOOLCHAIN, refit=True)
    precision = spec.precision.model_copy(update={"name": "fp32"})
    changes = {"profiles": (SMALL, LARGE), "precision": precision}
    return job(
        site, spec.model_copy(update=changes), faulty(path, **faults), folder / "reference.npz"
    )


def weights_in(plan: bytes) -> dict[str, Any]:
    """The weights that an engine of the fake computes with."""
    model = onnx.load_from_string(base64.b64decode(json.loads(plan)["onnx"]))
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


def plan_of(store: EngineStore, manifest: Manifest) -> bytes:
    return store.read_bytes(manifest.engine)


# On the farm


def test_later_weights_are_set_in_the_first_plan(
    publish: Publish, site: Site, builds: list[str]
) -> None:
    first, second = publish(), publish(w=2)
    assert builds == [first.spec.onnx_digest]
    assert first.refit is None
    assert second.refit is not None
    assert second.refit.skeleton == first.engine
    found = weights_in(plan_of(site.store, second))
    np.testing.assert_array_equal(found["w"], 2 * np.eye(4))
    np.testing.assert_array_equal(found["b"], np.ones(4))
    assert second.tensors == first.tensors
    assert second.build.layers == first.build.layers
    (note,) = second.notes
    assert note.startswith(f"refitted from {first.engine.digest[:12]} and verified in ")
    assert "1 weights of" in note


def test_weights_that_do_not_change_do_not_travel(publish: Publish, site: Site) -> None:
    from safetensors.numpy import load

    publish()
    one, both = publish(b=3), publish(w=2, b=3)
    assert one.refit is not None
    assert both.refit is not None
    assert load(site.store.read_bytes(one.refit.weights)).keys() == {"b"}
    assert load(site.store.read_bytes(both.refit.weights)).keys() == {"b", "w"}


def test_a_value_that_the_builder_may_have_read_makes_another_skeleton(
    publish: Publish, builds: list[str]
) -> None:
    publish()
    other = publish(limit=40)
    again = publish(limit=40, b=3)
    assert len(builds) == 2
    assert other.refit is None
    assert other.notes == ()
    assert again.refit is not None
    assert again.refit.skeleton == other.engine


def test_weights_that_tensorrt_merged_are_set_together(publish: Publish, site: Site) -> None:
    from safetensors.numpy import load

    publish(merged="w b")
    found = publish(b=3, merged="w b")
    assert found.refit is not None
    assert load(site.store.read_bytes(found.refit.weights)).keys() == {"b", "w"}


def test_a_weight_that_cannot_be_set_means_a_build_and_a_note(
    publish: Publish, builds: list[str]
) -> None:
    publish(merged="w scale")
    second = publish(w=2, merged="w scale")
    assert len(builds) == 2
    assert second.refit is None
    (note,) = second.notes
    assert note.startswith("built, and not refitted: ")
    assert "'scale'" in note
    third = publish(b=2, w=2, merged="w scale")
    assert third.refit is not None
    assert third.refit.skeleton == second.engine, (
        "the newest plan of a skeleton is the one that counts"
    )


def test_a_refit_that_changes_nothing_is_seen_on_the_device(
    publish: Publish, site: Site, builds: list[str]
) -> None:
    publish(deaf="")
    second = publish(w=2, deaf="")
    assert len(builds) == 2
    assert "is not accurate" in second.notes[0]
    np.testing.assert_array_equal(weights_in(plan_of(site.store, second))["w"], 2 * np.eye(4))


def test_hosts_download_what_does_not_repeat(publish: Publish, builds: list[str]) -> None:
    publish(unsteady="")
    second = publish(w=2, unsteady="")
    assert len(builds) == 1
    assert second.refit is None
    assert second.notes[0].endswith("because a second refit made other bytes")


def test_a_skeleton_whose_plan_is_lost_is_built_again(
    publish: Publish, site: Site, tmp_path: Path, builds: list[str]
) -> None:
    first = publish()
    site.store.objects.delete(layout.blob(first.engine))
    site.cache.path(first.engine).unlink()
    second = publish(w=2)
    third = publish(w=3)
    assert len(builds) == 2
    assert third.refit is not None
    assert third.refit.skeleton == second.engine


@pytest.mark.parametrize(
    "changes",
    [{"values": {}}, {"outputs": {}}, {"values": {"plan_key": "0" * 64, "opset": 17}}],
)
def test_a_damaged_record_of_a_skeleton_means_a_build(
    publish: Publish, site: Site, builds: list[str], changes: dict[str, Any]
) -> None:
    publish()
    (key,) = (one.key for one in site.store.objects.list(f"{layout.STAGES}skeleton-fp32/"))
    _, stage, name = key.split("/")
    record = site.store.stage(stage, name.removesuffix(".json"))
    assert record is not None
    site.store.put_stage(record.model_copy(update=changes))
    publish(w=2)
    assert len(builds) == 2


def test_a_signing_farm_refits_only_what_a_trusted_builder_recorded(
    publish: Publish, site: Site, tmp_path: Path, builds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish()  # by somebody without a key
    public, _ = signing.generate(tmp_path / "farm.pem")
    monkeypatch.setenv("ENGINEFARM_SIGNING_KEY", str(tmp_path / "farm.pem"))
    monkeypatch.setenv("ENGINEFARM_TRUST", str(public))
    publish(w=2)
    assert len(builds) == 2
    third = publish(w=3)
    assert third.refit is not None
    assert len(builds) == 2
    assert enginefarm.pull("model", gpu="a100").manifest == third


# On a host


@pytest.fixture
def host(tmp_path: Path, store_environment: EngineStore) -> Callable[[], Any]:
    """Pulls the newest engine on a host whose cache lasts."""
    cache = BlobCache(tmp_path / "host")
    return lambda: enginefarm.pull("model", gpu="a100", cache=cache)


def without_engine(store: EngineStore, manifest: Manifest) -> None:
    """A download of the whole engine would fail."""
    store.objects.delete(layout.blob(manifest.engine))


@pytest.mark.usefixtures("no_gpu_here")
def test_a_host_that_has_the_skeleton_fetches_the_weights_alone(
    publish: Publish, site: Site, host: Callable[[], Any]
) -> None:
    first = publish()
    assert host().delivery == ""
    second = publish(w=2)
    without_engine(site.store, second)
    pulled = host()
    assert pulled.manifest == second
    assert pulled.delivery.startswith(f"refitted from {first.engine.digest[:12]} in ")
    assert second.refit is not None
    assert f"{second.refit.weights.size_bytes:,} bytes of weights were fetched" in pulled.delivery
    np.testing.assert_array_equal(weights_in(pulled.path.read_bytes())["w"], 2 * np.eye(4))
    again = host()
    assert again.cached
    assert again.delivery == ""


@pytest.mark.usefixtures("no_gpu_here")
def test_a_host_without_the_skeleton_downloads_the_engine(
    publish: Publish, host: Callable[[], Any]
) -> None:
    first = publish()
    second = publish(w=2)
    pulled = host()
    assert pulled.manifest == second
    assert pulled.delivery == (
        "downloaded whole, and not refitted: the plan "
        f"{first.engine.digest[:12]} is not in the cache of this host"
    )


def other_bytes(request: str) -> str:
    """A TensorRT that serializes otherwise."""
    order = json.loads(request)
    Path(order["dest"]).write_bytes(b"other bytes")
    return json.dumps({"seconds": 0})


def dies(request: str) -> str:
    import os

    os.abort()


@pytest.mark.usefixtures("no_gpu_here")
@pytest.mark.parametrize(
    ("refitter", "words"),
    [
        (other_bytes, "makes other bytes than the farm's did"),
        (dies, "its process was killed by SIGABRT"),
    ],
)
def test_what_is_not_the_manifests_engine_is_never_taken(
    publish: Publish,
    host: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
    refitter: Callable[[str], str],
    words: str,
) -> None:
    publish()
    host()
    second = publish(w=2)
    row = TOOLCHAINS["tensorrt"]._replace(refit=f"{__name__}:{refitter.__name__}")
    monkeypatch.setitem(TOOLCHAINS, "tensorrt", row)
    pulled = host()
    assert pulled.delivery.startswith("downloaded whole, and not refitted: ")
    assert words in pulled.delivery
    np.testing.assert_array_equal(weights_in(pulled.path.read_bytes())["w"], 2 * np.eye(4))
    assert pulled.manifest == second


@pytest.mark.usefixtures("no_gpu_here")
def test_damaged_weights_are_refused_and_the_engine_is_downloaded(
    publish: Publish, site: Site, host: Callable[[], Any]
) -> None:
    publish()
    host()
    second = publish(w=2)
    assert second.refit is not None
    weights = second.refit.weights
    site.store.objects.put(layout.blob(weights), b"x" * weights.size_bytes)
    pulled = host()
    assert weights.digest[:12] in pulled.delivery
    assert "they are not used" in pulled.delivery
    np.testing.assert_array_equal(weights_in(pulled.path.read_bytes())["w"], 2 * np.eye(4))


@pytest.mark.usefixtures("no_gpu_here")
def test_a_host_without_bindings_fetches_no_weights(
    publish: Publish, site: Site, host: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish()
    host()
    second = publish(w=2)
    assert second.refit is not None
    site.store.objects.delete(layout.blob(second.refit.weights))
    monkeypatch.setattr("enginefarm.pulling.refit.find_spec", lambda name: None)
    assert "bindings of tensorrt are not installed" in host().delivery


# In the store


def test_gc_keeps_the_skeleton_and_the_weights_of_an_engine_that_it_keeps(
    publish: Publish, site: Site, builds: list[str]
) -> None:
    first, second = publish(), publish(w=2)
    assert second.refit is not None
    later = datetime.now(UTC) + timedelta(days=30)
    collect(site.store, Policy(keep_builds=1), delete=True, now=later)
    assert site.store.manifest(first.spec_digest) is None
    assert site.store.has_blob(second.refit.skeleton)
    assert site.store.has_blob(second.refit.weights)
    third = publish(w=3)
    assert third.refit is not None
    assert len(builds) == 1


def test_fsck_knows_them_and_the_engine_is_whole_without(publish: Publish, site: Site) -> None:
    publish()
    second = publish(w=2)
    assert second.refit is not None
    site.store.objects.delete(layout.blob(second.refit.weights))
    site.cache.path(second.refit.weights).unlink()
    found = [one for one in fsck.check(site).findings if second.refit.weights.digest in one.key]
    assert [one.harmless for one in found] == [True]
    assert "weights" in found[0].what
