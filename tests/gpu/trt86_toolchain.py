"""TensorRT 8.6 as the toolchain `tensorrt`, for the GPU tests alone.

The machine with a GPU has no full TensorRT 10 or 11 (docs/decisions/0033). This one stands in
their place with the same Protocol and the parts of toolchains/tensorrt.py that 8.6 can serve:
profiles, options and their read-back, timing cache, inspector, plan. What it lacks is strong
typing (the graph's precision is allowed by flags instead, and what the graph computes in FP32 is
asked for; trt86_graph.py) and the progress monitor. tests/gpu/site/sitecustomize.py enters it in
the table TOOLCHAINS.
"""

from __future__ import annotations

import platform
import time
from importlib.metadata import version
from typing import Any

from trt86_graph import lifted, lowered, values_in_fp32

from enginefarm.documents.spec import BuildSpec, GpuTarget, ToolchainId
from enginefarm.errors import ToolchainError
from enginefarm.names import PrecisionName
from enginefarm.run.trt import Messages, make_logger
from enginefarm.toolchains import BuildOutput, BuildRequest, builder_api, parsing, tensorrt

FLAGS: dict[str, tuple[str, ...]] = {"fp32": (), "fp16": ("FP16",), "int8": ("INT8", "FP16")}


def keep_wide(trt: Any, network: Any, config: Any, wide: set[str]) -> int:
    """Layers that the graph computes in FP32 stay there, as in a strongly typed network: 8.6 else
    takes FP16 wherever it is faster. Returns how many.

    wide: the graph's values in FP32. Not what 8.6 says: until it builds, an output of a layer with
    FP16 inputs is FP32 to it, too.
    """
    config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
    free = {trt.LayerType.SHAPE, trt.LayerType.CONSTANT, trt.LayerType.CAST}
    count = 0
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        names = {layer.get_output(i).name for i in range(layer.num_outputs)}
        if names <= wide and layer.type not in free:
            layer.precision = trt.DataType.FLOAT
            count += 1
    return count


class ParserError:
    """An error of 8.6's parser, which does not say which operator its node has."""

    def __init__(self, error: Any) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._error, name)

    def node_operator(self) -> str:
        return ""

    def node_name(self) -> str:
        return ""


class Parser:
    """8.6's parser with errors that can be asked what TensorRT 10's can."""

    def __init__(self, parser: Any) -> None:
        self._parser = parser

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)

    def get_error(self, index: int) -> ParserError:
        return ParserError(self._parser.get_error(index))


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
        parser: Any = Parser(trt.OnnxParser(network, logger))
        onnx = lowered(request.onnx, request.work_dir / "lowered.onnx")
        if spec.precision.name == "int8":
            onnx = lifted(onnx, request.work_dir / "lifted.onnx")
        parsing.parse_onnx(parser, network, onnx, messages, self.name)
        config = tensorrt.make_config(trt, builder, request)
        # As from 10 on: several execution contexts on one profile. Without it, 8.6 crashes.
        config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
        builder_api.add_profiles(builder, config, network, spec.profiles)
        for flag in FLAGS[spec.precision.name]:
            builder_api.set_flag(trt, config, flag, spec.precision.name)
        fp16 = spec.precision.name == "fp16"
        wide = keep_wide(trt, network, config, values_in_fp32(onnx)) if fp16 else 0
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
            details={
                "layers": network.num_layers,
                "kept_in_fp32": wide,
                "timing_cache_used": cache_used,
            },
        )
