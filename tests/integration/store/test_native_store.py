"""Timing caches and on-device outcomes in a real S3 store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
import tiny_onnx

from enginefarm.building import native as native_build
from enginefarm.building import timing_cache
from enginefarm.documents.manifest import (
    BuildRecord,
    DeviceVerification,
    Environment,
    GraphVerification,
    Manifest,
)
from enginefarm.documents.spec import BuildSpec, OnnxRef, ToolchainId
from enginefarm.errors import ToolchainError
from enginefarm.store import quarantine as device_records
from enginefarm.store.engine_store import EngineStore
from enginefarm.toolchains import BuildRequest, toolchain

TOOLCHAIN = ToolchainId(name="tensorrt", build="11.4.0.106", cuda="13", os="linux", arch="x86_64")
SPEC = tiny_onnx.spec(TOOLCHAIN)
A100 = {"gpu_name": "NVIDIA A100-SXM4-40GB", "driver": "580.1"}


def union(stored: bytes, fresh: bytes) -> bytes:
    """Stands in for ITimingCache.combine: a cache is a set of lines."""
    return b"\n".join(sorted({*stored.split(b"\n"), *fresh.split(b"\n")}))


def test_a_cache_is_found_again_by_the_very_same_combination(
    store: EngineStore, tmp_path: Path
) -> None:
    key = timing_cache.key_for(SPEC, **A100)
    (tmp_path / "fresh").write_bytes(b"conv1: 3 us")
    assert timing_cache.fetch(store, key, tmp_path / "none") is None
    timing_cache.merge(store, key, tmp_path / "fresh", union)
    found = timing_cache.fetch(store, key, tmp_path / "got")
    assert found is not None
    assert found.read_bytes() == b"conv1: 3 us"


@pytest.mark.parametrize(
    "other",
    [
        timing_cache.key_for(SPEC, gpu_name="NVIDIA A100-SXM4-80GB", driver="580.1"),
        timing_cache.key_for(SPEC, gpu_name="NVIDIA A100-SXM4-40GB", driver="535.1"),
        timing_cache.key_for(
            SPEC.model_copy(
                update={"toolchain": TOOLCHAIN.model_copy(update={"build": "11.3.0.99"})}
            ),
            **A100,
        ),
        timing_cache.key_for(
            SPEC.model_copy(update={"toolchain": TOOLCHAIN.model_copy(update={"cuda": "12"})}),
            **A100,
        ),
        timing_cache.key_for(tiny_onnx.spec(TOOLCHAIN, sparse_weights=True), **A100),
        timing_cache.key_for(tiny_onnx.spec(TOOLCHAIN, gpu="l4"), **A100),
    ],
)
def test_a_mismatch_never_meets_it(store: EngineStore, tmp_path: Path, other: str) -> None:
    (tmp_path / "fresh").write_bytes(b"conv1: 3 us")
    timing_cache.merge(store, timing_cache.key_for(SPEC, **A100), tmp_path / "fresh", union)
    assert timing_cache.fetch(store, other, tmp_path / "got") is None


def test_what_a_build_started_from_needs_no_combining(store: EngineStore, tmp_path: Path) -> None:
    key = timing_cache.key_for(SPEC, **A100)
    for name, data in (("first", b"a"), ("second", b"a\nb")):
        (tmp_path / name).write_bytes(data)
    timing_cache.merge(store, key, tmp_path / "first", union)
    loaded = timing_cache.fetch(store, key, tmp_path / "loaded")

    def never(stored: bytes, fresh: bytes) -> bytes:
        raise AssertionError("there was nothing to combine")

    timing_cache.merge(store, key, tmp_path / "second", never, loaded=loaded)
    found = timing_cache.fetch(store, key, tmp_path / "got")
    assert found is not None
    assert found.read_bytes() == b"a\nb"


def test_sixteen_writers_at_once_lose_nothing(store: EngineStore, tmp_path: Path) -> None:
    key = timing_cache.key_for(SPEC, **A100)

    def write(number: int) -> None:
        fresh = tmp_path / f"fresh{number}"
        fresh.write_bytes(b"layer %d" % number)
        for _ in range(5):  # a build that loses eight races in a row may come again
            try:
                timing_cache.merge(store, key, fresh, union)
            except Exception:
                continue
            return
        raise AssertionError(f"writer {number} never got through")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write, range(16)))
    found = timing_cache.fetch(store, key, tmp_path / "got")
    assert found is not None
    assert set(found.read_bytes().split(b"\n")) == {b"layer %d" % n for n in range(16)}


def test_a_damaged_cache_is_no_cache(store: EngineStore, tmp_path: Path) -> None:
    key = timing_cache.key_for(SPEC, **A100)
    store.objects.put(key, b"0" * 64 + b"rubbish")
    assert timing_cache.fetch(store, key, tmp_path / "got") is None
    (tmp_path / "fresh").write_bytes(b"good")
    timing_cache.merge(store, key, tmp_path / "fresh", union)
    assert timing_cache.fetch(store, key, tmp_path / "got") is not None


def published(store: EngineStore, spec: BuildSpec = SPEC) -> Manifest:
    engine = store.put_bytes(b"a plan")
    manifest = Manifest(
        recipe="tiny",
        spec=spec,
        spec_digest=spec.digest,
        engine=engine,
        graph=OnnxRef(model=engine, opset=17),
        tensors=(),
        verification=GraphVerification(samples=1, runtime="ort", outputs=()),
        device_verification=DeviceVerification(status="pending"),
        build=BuildRecord(seconds=1, peak_memory_bytes=1),
        environment=Environment(host="h", os="linux", arch="x86_64", python="3", packages={}),
        created_at=datetime.now(UTC),
    )
    assert store.publish(manifest)
    return manifest


def test_a_pass_is_written_into_the_manifest(store: EngineStore, tmp_path: Path) -> None:
    manifest = published(store)
    passed = DeviceVerification(status="passed", gpu="NVIDIA A100-SXM4-40GB", driver="580.1")
    device_records.record(store, manifest, passed, tmp_path / "unused")
    found = store.manifest(manifest.spec_digest)
    assert found is not None
    assert found.device_verification == passed
    assert found.model_copy(update={"device_verification": manifest.device_verification}) == (
        manifest
    )


def test_a_failure_leaves_the_tables_and_keeps_its_log(store: EngineStore, tmp_path: Path) -> None:
    manifest = published(store)
    (tmp_path / "log").write_text("NaN in scores")
    failed = DeviceVerification(status="failed", gpu="A100", reason="scores: it holds NaN")
    device_records.record(store, manifest, failed, tmp_path / "log")
    assert store.manifest(manifest.spec_digest) is None
    assert manifest.spec_digest not in store.complete("tiny")
    found = device_records.quarantined(store, manifest.spec_digest)
    assert found is not None
    assert found.verification == failed
    assert store.read_bytes(found.log) == b"NaN in scores"
    assert found.manifest.engine == manifest.engine


def test_a_cross_build_asks_for_no_gpu_and_no_cache(store: EngineStore, tmp_path: Path) -> None:
    rtx = toolchain("tensorrt-rtx").identity()
    request = BuildRequest(
        spec=tiny_onnx.spec(rtx),
        onnx=tiny_onnx.convolutions(tmp_path / "model.onnx"),
        work_dir=tmp_path / "w",
    )
    assert native_build.build(store, request).plan.is_file()
    assert not list(store.objects.list(timing_cache.PREFIX))


def test_attempts_without_a_reference_are_refused(store: EngineStore, tmp_path: Path) -> None:
    request = BuildRequest(
        spec=tiny_onnx.spec(TOOLCHAIN, attempts=3),
        onnx=tmp_path / "model.onnx",
        work_dir=tmp_path / "w",
    )
    with pytest.raises(ToolchainError, match=r"builder\.attempts"):
        native_build.build(store, request)
