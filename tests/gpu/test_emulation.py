"""What graph/model/emulate.py predicts for FP16, against what an FP16 engine gives.

ENGINEFARM_GPU_CASES is a folder by make_cases.py: NAME.onnx, and NAME.npz with the inputs, the FP32
outputs and the emulated ones.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginefarm.run.engine import Engine
from enginefarm.run.trt import Messages, make_logger
from enginefarm.toolchains import builder_api, parsing, tensorrt

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(200)]

FOLDER = os.environ.get("ENGINEFARM_GPU_CASES")
CASES = sorted(Path(FOLDER).glob("*.npz")) if FOLDER else []


def built(onnx: Path, dest: Path, obey: bool) -> Path:
    """A plan by 8.6. obey: every layer that can is told FP16, since its networks are not strongly
    typed; otherwise it chooses for itself."""
    trt = tensorrt.load()
    messages = Messages()
    logger = make_logger(trt, messages)
    builder = trt.Builder(logger)
    network = builder.create_network(1)
    parser = trt.OnnxParser(network, logger)
    parsing.parse_onnx(parser, network, onnx, messages, "tensorrt")
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.FP16)
    sources = (trt.TacticSource.EDGE_MASK_CONVOLUTIONS, trt.TacticSource.JIT_CONVOLUTIONS)
    config.set_tactic_sources(sum(1 << int(one) for one in sources))
    if obey:
        config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            kinds = {layer.get_output(i).dtype for i in range(layer.num_outputs)}
            wide = {trt.LayerType.SHAPE, trt.LayerType.CONSTANT, trt.LayerType.CAST}
            if kinds <= {trt.DataType.HALF, trt.DataType.FLOAT} and layer.type not in wide:
                layer.precision = trt.DataType.HALF
    builder_api.write_plan(builder, network, config, dest, messages)
    return dest


def cosine(a: Any, b: Any) -> float:
    a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("nan")
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-300))


def zeros(values: Any) -> float:
    return float((values == 0).mean())


@pytest.mark.parametrize("obey", [True, False], ids=["fp16", "free"])
@pytest.mark.parametrize("case", CASES or [None], ids=lambda one: one.stem if one else "none")
def test_an_engine_does_as_predicted(case: Path | None, obey: bool, tmp_path: Path) -> None:
    if case is None:
        pytest.skip("not run: ENGINEFARM_GPU_CASES names no folder (make_cases.py)")
    held = dict(np.load(case))
    wide, predicted = held.pop("fp32"), held.pop("emulated")
    if "position_ids" in held:
        held["position_ids"] = held["position_ids"].astype(np.int32)  # 8.6 has no INT64
    plan = built(case.with_suffix(".onnx"), tmp_path / "x.plan", obey)
    with Engine(plan, toolchain="tensorrt") as engine:
        found = engine.run(held)["y"]
    print(
        f"| {case.stem} | {'all FP16' if obey else 'as 8.6 chooses'} "
        f"| {np.isfinite(predicted).mean():.3f} | {np.isfinite(found).mean():.3f} "
        f"| {zeros(predicted):.3f} | {zeros(found):.3f} "
        f"| {cosine(predicted, wide):.5f} | {cosine(found, wide):.5f} "
        f"| {cosine(found, predicted):.5f} |"
    )
    if not obey:
        return  # for the record: without strong typing it may compute anything in FP32
    # 8.6 fuses pointwise layers, and computes inside one kernel in FP32: what the emulation sees
    # overflow need not. The other way round, the emulation would have missed a fault.
    if np.isfinite(predicted).all():
        assert np.isfinite(found).all()
    if np.isfinite(predicted).all() and zeros(predicted) < 0.5:
        assert abs(cosine(found, wide) - cosine(predicted, wide)) < 0.05
