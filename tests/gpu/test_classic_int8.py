"""IInt8EntropyCalibrator2 on a real GPU, fed by our calibrator in the builder's child process."""

from __future__ import annotations

from pathlib import Path

import builds
import numpy as np
import pytest

from enginefarm.build import isolate
from enginefarm.graph.reference import read_reference
from enginefarm.run.engine import Engine
from enginefarm.toolchains import BuildOutput, classic_int8

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(400)]


def build(models: Path, work_dir: Path, cache: Path | None) -> BuildOutput:
    asked = builds.request(
        models / "efficientnet_lite0.onnx",
        work_dir,
        builds.PICTURES,
        precision="int8",
        calibration=models / "efficientnet_lite0.npz",
        classic_int8=True,
        optimization_level=1,
    )
    if cache is not None:
        work_dir.mkdir()
        (work_dir / cache.name).write_bytes(cache.read_bytes())
    return isolate.build(asked, toolchain="tensorrt")


def test_it_calibrates_and_uses_its_cache_again(models: Path, tmp_path: Path) -> None:
    data = models / "efficientnet_lite0.npz"
    first = build(models, tmp_path / "first", None)
    cache = classic_int8.cache_path(tmp_path / "first", data)
    lines = cache.read_text().splitlines()
    print("calibration cache:", lines[0], len(lines) - 1, "tensors")
    assert "EntropyCalibration2" in lines[0]
    assert len(lines) > 50
    log = (tmp_path / "first" / isolate.LOG_NAME).read_text()
    assert "Calibrat" in log

    cosines: list[float] = []
    with Engine(first.plan, toolchain="tensorrt") as engine:
        for batch in read_reference(data):
            found = engine.run(batch.inputs)["scores"].ravel().astype(np.float64)
            wanted = batch.outputs["scores"].ravel().astype(np.float64)
            cosines.append(float(found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted)))
        layers = engine.layers_json()
    print(f"classic INT8: built in {first.seconds:.1f} s, cosine to FP32 {min(cosines):.5f}")
    assert layers.count("Int8") > 20, "the builder took no INT8 tactic"
    assert min(cosines) > 0.8

    second = build(models, tmp_path / "second", cache)
    again = (tmp_path / "second" / isolate.LOG_NAME).read_text()
    print(f"from the calibration cache: {second.seconds:.1f} s")
    assert "Starting Calibration" in log
    assert "Starting Calibration" not in again
    kept = classic_int8.cache_path(tmp_path / "second", data).read_text()
    assert kept.splitlines()[1:] == lines[1:]
