"""The whole farm on a machine with a GPU: server, store, workers, native builds, pull.

Real Prefect, real S3, a worker that NVML vouches for; the native toolchain is TensorRT 8.6
(trt86_toolchain.py). ENGINEFARM_GPU_LABEL is the label of the GPU at hand (default h100);
ENGINEFARM_GPU_CARDS the ones to take, a worker each (`0,1` for two; default the one that CUDA
sees); ENGINEFARM_GPU_TOOLCHAIN=ort-trt, with /opt/ort first on PYTHONPATH, is the same farm on
ONNX Runtime's TensorRT provider (ort_trt86_toolchain.py).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from enginefarm.documents.manifest import Manifest
from enginefarm.errors import WorkerMismatch
from enginefarm.tables.tables import BenchmarkTables
from tests.farm.farm_fixture import Farm, until

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(560)]

LABEL = os.environ.get("ENGINEFARM_GPU_LABEL", "h100")
TOOLCHAIN = os.environ.get("ENGINEFARM_GPU_TOOLCHAIN", "tensorrt")
CARDS = os.environ.get("ENGINEFARM_GPU_CARDS", os.environ.get("CUDA_VISIBLE_DEVICES", "0")).split(
    ","
)
WORKERS = [f"gpu-{card}" for card in CARDS]
GRAPHS = (False, True) if TOOLCHAIN == "tensorrt" else (False,)
"""With and without a CUDA graph: ONNX Runtime lets nobody else capture one."""
NAME = "efficientnet-lite0"
BATCHES = [1, 2, 4, 8, 16, 32]


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    made = Farm(tmp_path_factory.mktemp("farm"), database=None)
    made.environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
    try:
        made.start_server()
        made.start_worker("control", "--control")
        for name, card in zip(WORKERS, CARDS, strict=True):
            made.start_worker(name, "--gpu", LABEL, CUDA_VISIBLE_DEVICES=card)
        deployed = made.command("deploy")
        assert deployed.returncode == 0, deployed.stderr
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def built(farm: Farm, models: Path) -> dict[str, Manifest]:
    """FP16 and INT8 engines of EfficientNet-Lite0, built by the deployment build-model."""
    for name in ("efficientnet_lite0.onnx", "calibration.npz", "verification.npz"):
        shutil.copy(models / name, farm.recipes / name)
    recipe = {
        "name": NAME,
        "source": {"kind": "onnx", "path": "efficientnet_lite0.onnx"},
        "inputs": [{"name": "images", "shape": ["batch", 3, 224, 224]}],
        "profiles": [{"dims": {"batch": [1, 8, 32]}}],
        "precisions": ["fp16", "int8"],
        "gpus": [LABEL],
        "toolchain": TOOLCHAIN,
        # cuBLAS and cuDNN of CUDA 12 are not on the machine.
        "builder": {
            "tactic_sources": ["EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"],
            "optimization_level": int(os.environ.get("ENGINEFARM_GPU_OPTIMIZATION", "3")),
        },
        "calibration": {
            "data": {"path": "calibration.npz"},
            "method": "percentile",
            "percentile": 99.999,
            "batches": 8,
            "batch_size": 8,
        },
        "verification": {
            "data": {"path": "verification.npz"},
            "batches": 4,
            "batch_size": 8,
            "class_scores": ["scores"],
        },
        "accuracy": {"int8": {"min_cosine": 0.97, "max_relative_l2": 0.25}},
    }
    (farm.recipes / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    run = farm.wait(farm.submit("build-model/build-model", recipe="recipe.yaml"), 500)
    said = "\n".join([str(run.state), *map(farm.log, ["control", *WORKERS])])
    assert run.state is not None, said
    assert run.state.is_completed(), said
    children = farm.children(run.id)
    assert {child.state_name for child in children} == {"Built"}
    assert {child.work_pool_name for child in children} == {f"gpu-{LABEL}"}
    found = {one.precision: one for one in farm.store.manifests(NAME)}
    for precision, manifest in found.items():
        print(precision, f"built in {manifest.build.seconds:.1f} s,", manifest.verification)
    keep = os.environ.get("ENGINEFARM_GPU_KEEP")
    if keep and TOOLCHAIN == "tensorrt":  # the side-by-side benchmark runs these very engines
        for precision, manifest in found.items():
            target = Path(keep) / f"efficientnet_lite0-{precision}.plan"
            farm.store.fetch_blob(manifest.engine, target)
    return found


@pytest.fixture(scope="module")
def verified(farm: Farm, built: dict[str, Manifest]) -> dict[str, Manifest]:
    """The same, after benchmark-engine, which the farm starts by itself on the GPU's worker."""

    def measured() -> bool:
        rows = BenchmarkTables(farm.store.objects).rows()
        done = [row for row in rows if row.outcome == "measured"]
        return len(done) == len(GRAPHS) * len(BATCHES) * len(built)

    until(measured, "every engine is measured", 300, lambda: "\n".join(map(farm.log, WORKERS)))
    return {one.precision: one for one in farm.store.manifests(NAME)}


def test_engines_are_built_natively_on_the_labeled_worker(
    farm: Farm, built: dict[str, Manifest]
) -> None:
    assert set(built) == {"fp16", "int8"}
    for manifest in built.values():
        assert manifest.spec.toolchain.name == TOOLCHAIN
        assert farm.store.has_blob(manifest.engine)
        assert (manifest.build.layers is not None) is (TOOLCHAIN == "tensorrt")
        assert manifest.build.log is not None
        assert manifest.verification.passed
        # The run that verifies it on the GPU is a later one, and may be over by now.
        assert manifest.device_verification.status in {"pending", "passed"}


def test_engines_are_verified_on_the_gpu_in_a_fresh_process(
    verified: dict[str, Manifest],
) -> None:
    for precision, manifest in verified.items():
        device = manifest.device_verification
        print(precision, device)
        assert device.status == "passed", device.reason
        assert device.gpu is not None
        assert "H100" in device.gpu or LABEL != "h100"
        assert device.driver
        assert device.outputs[0].cosine > (0.999 if precision == "fp16" else 0.97)
        assert device.outputs[0].top1_agreement is not None


def measured(*figures: float | None) -> list[float]:
    assert None not in figures
    return [figure for figure in figures if figure is not None]


def test_the_benchmark_sweeps_batches_with_and_without_a_graph(
    farm: Farm, verified: dict[str, Manifest]
) -> None:
    rows = [row for row in BenchmarkTables(farm.store.objects).rows() if row.outcome == "measured"]
    for precision, manifest in verified.items():
        mine = [row for row in rows if row.spec_digest == manifest.spec_digest]
        assert sorted({row.batch for row in mine}) == BATCHES
        for graph in GRAPHS:
            assert sorted(row.batch for row in mine if row.cuda_graph is graph) == BATCHES
        for row in sorted(mine, key=lambda one: (one.batch, one.cuda_graph)):
            print(
                f"| {precision} | {row.batch} | {'yes' if row.cuda_graph else 'no'} "
                f"| {row.latency_ms_median:.3f} | {row.latency_ms_p99:.3f} "
                f"| {row.compute_ms_median or 0:.3f} | {row.throughput_samples_per_s:.0f} "
                f"| {row.cov_verdict} | {row.power_w} | {row.sm_clock_mhz} |"
            )
            least, median, p99, power_w, clock_mhz = measured(
                row.latency_ms_min,
                row.latency_ms_median,
                row.latency_ms_p99,
                row.power_w,
                row.sm_clock_mhz,
            )
            assert least <= median <= p99
            # Two passes measure them; a GPU that others use too can be slower in either.
            if row.cov_verdict == "stable":
                assert (row.compute_ms_median or 0) < median
            assert 10 < power_w < 1000
            assert clock_mhz > 100


def test_pull_on_this_very_host_takes_the_engine(
    farm: Farm, verified: dict[str, Manifest], tmp_path: Path
) -> None:
    for precision, manifest in verified.items():
        dest = tmp_path / precision
        pulled = farm.command("pull", NAME, "--precision", precision, "--dest", str(dest), "--json")
        assert pulled.returncode == 0, pulled.stderr
        assert manifest.engine.digest in pulled.stdout
    listed = farm.command("workers", "--json")
    found = [row["card"] for row in json.loads(listed.stdout) if row["card"]["role"] == "gpu"]
    assert sorted(card["name"] for card in found) == WORKERS
    for card in found:
        print(card)
        assert card["gpu"] == LABEL
        assert card["driver"]


def test_every_card_had_its_share(farm: Farm, built: dict[str, Manifest]) -> None:
    kept = {name: list((farm.root / "caches" / name / "blobs").rglob("*")) for name in WORKERS}
    print({name: len(found) for name, found in kept.items()})
    assert len(built) < len(WORKERS) or all(kept.values())


def test_a_worker_with_another_gpus_label_is_refused(farm: Farm) -> None:
    refused = farm.command("worker", "--gpu", "t4" if LABEL != "t4" else "a100")
    assert refused.returncode == WorkerMismatch.exit_code, refused.stderr
    assert "this machine's GPU is" in refused.stderr
    assert f"--gpu {LABEL}" in refused.stderr
    assert "Traceback" not in refused.stderr
