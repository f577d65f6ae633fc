"""ConvTranspose between Q and DQ builds for INT8, and agrees with ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_onnx
from onnx import TensorProto, helper, numpy_helper

from enginefarm.run.engine import Engine
from enginefarm.run.trt import Messages, make_logger
from enginefarm.toolchains import builder_api, parsing, tensorrt

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(200)]
CHANNELS = 16


def model(path: Path) -> Path:
    """x -> Q -> DQ -> ConvTranspose with an FP32 weight between Q and DQ, by output channel."""
    weight = np.random.default_rng(0).standard_normal((CHANNELS, CHANNELS, 2, 2)).astype(np.float32)
    scales = (np.abs(weight).max(axis=(0, 2, 3)) / 127).astype(np.float32)
    constants = {
        "w": weight,
        "ws": scales,
        "wz": np.zeros(CHANNELS, np.int8),
        "xs": np.float32(4 / 127),
        "xz": np.int8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("QuantizeLinear", ["w", "ws", "wz"], ["wq"], axis=1),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], axis=1),
        helper.make_node("ConvTranspose", ["xd", "wd"], ["y"], "up", strides=[2, 2]),
    ]
    return tiny_onnx.save(
        path,
        nodes,
        [tiny_onnx.value("x", [2, CHANNELS, 8, 8], TensorProto.FLOAT)],
        [tiny_onnx.value("y", [2, CHANNELS, 16, 16], TensorProto.FLOAT)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )


def test_it_builds_and_agrees(tmp_path: Path) -> None:
    path = model(tmp_path / "up.onnx")
    opened = onnx.load(path)
    opened.opset_import[0].version, opened.ir_version = 17, 8
    onnx.save(opened, path)
    trt: Any = tensorrt.load()
    messages = Messages()
    logger = make_logger(trt, messages)
    builder = trt.Builder(logger)
    network = builder.create_network(1)
    parsing.parse_onnx(trt.OnnxParser(network, logger), network, path, messages, "tensorrt")
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.INT8)
    sources = (trt.TacticSource.EDGE_MASK_CONVOLUTIONS, trt.TacticSource.JIT_CONVOLUTIONS)
    config.set_tactic_sources(sum(1 << int(one) for one in sources))
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    plan = tmp_path / "up.plan"
    builder_api.write_plan(builder, network, config, plan, messages)
    feeds = {"x": np.random.default_rng(1).standard_normal((2, CHANNELS, 8, 8)).astype(np.float32)}
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wanted = np.asarray(session.run(None, feeds)[0]).ravel()
    with Engine(plan, toolchain="tensorrt") as engine:
        print(engine.layers_json()[:1500])
        found = engine.run(feeds)["y"].ravel()
    error = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
    print(f"relative L2 to ONNX Runtime {error:.2e}")
    assert error < 1e-2
