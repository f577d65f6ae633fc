"""TensorRT 8.6 as the toolchain `tensorrt`, for the GPU tests alone.

The machine with a GPU has no full TensorRT 10 or 11 (docs/decisions/0033). This one stands in
their place with the same Protocol and the parts of toolchains/tensorrt.py that 8.6 can serve:
profiles, options and their read-back, timing cache, inspector, plan. What it
lacks is strong typing (the graph's precision is allowed by flags instead; trt86_graph.py) and
the progress monitor. tests/gpu/site/sitecustomize.py enters it in the table TOOLCHAINS.
"""

from __future__ import annotations

import platform
import time
from importlib.metadata import version
from typing import Any

from trt86_graph import lifted

from enginefarm.documents.spec import BuildSpec, GpuTarget, ToolchainId
from enginefarm.errors import ToolchainError
from enginefarm.names import PrecisionName
from enginefarm.run.trt import Messages, make_logger
from enginefarm.toolchains import BuildOutput, BuildRequest, builder_api, parsing, tensorrt

FLAGS: dict[str, tuple[str, ...]] = {"fp32": (), "fp16": ("FP16",), "int8": ("INT8", "FP16")}


class TensorRT86:
    name = tensorrt.NAME
    cross = False

    def identity(self) -> ToolchainId:
        return ToolchainId(
            name=tensorrt.NAME,
            build=version("tensorrt"),
            cuda="12",
            os=platform.system().lower(),
            arch=platform.machine(),
        )

    def carries(self, gpu: GpuTarget, precision: PrecisionName) -> tuple[str, ...]:
        return ()

    def check(self, spec: BuildSpec) -> None:
        if spec.precision.name not in FLAGS:
            raise ToolchainError(f"TensorRT 8.6 has no {spec.precision.name}")

    def build(self, request: BuildRequest) -> BuildOutput:
        spec = request.spec
        self.check(spec)
        tensorrt.require_gpu(spec)
        trt: Any = tensorrt.load()
        create = time.monotonic()
        messages = Messages()
        logger = make_logger(trt, messages)
        trt.init_libnvinfer_plugins(logger, "")
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
        parser = trt.OnnxParser(network, logger)
        onnx = request.onnx
        if spec.precision.name == "int8":
            onnx = lifted(onnx, request.work_dir / "lifted.onnx")
        parsing.parse_onnx(parser, network, onnx, messages, self.name)
        config = tensorrt.make_config(trt, builder, request)
        builder_api.add_profiles(builder, config, network, spec.profiles)
        for flag in FLAGS[spec.precision.name]:
            builder_api.set_flag(trt, config, flag, spec.precision.name)
        cache_used = tensorrt.use_timing_cache(config, request.timing_cache, messages)
        plan = request.work_dir / "engine.plan"
        builder_api.write_plan(builder, network, config, plan, messages)
        return BuildOutput(
            plan=plan,
            tensors=builder_api.network_tensors(network, onnx),
            seconds=time.monotonic() - create,
            layers=tensorrt.write_layers(
                trt, logger, plan, request.work_dir / "layers.json", messages
            ),
            timing_cache=tensorrt.save_timing_cache(config, request.work_dir / "timing.cache"),
            details={"layers": network.num_layers, "timing_cache_used": cache_used},
        )
