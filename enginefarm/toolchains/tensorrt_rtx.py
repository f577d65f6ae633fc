"""TensorRT-RTX: builds for a GPU that this machine need not have.

The plan holds no machine code yet: kernels are specialized when it is loaded on the GPU.
"""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any

from enginefarm.documents import gpus
from enginefarm.documents.spec import BuildSpec, GpuTarget, ToolchainId
from enginefarm.errors import BuildError, ToolchainError
from enginefarm.names import PrecisionName
from enginefarm.run.trt import Messages, create, started
from enginefarm.toolchains import (
    BuildOutput,
    BuildRequest,
    builder_api,
    built_here,
    installed_build,
    parsing,
)

NAME = "tensorrt-rtx"
CUDA = "13"
LIBRARIES = f"tensorrt-rtx-cu{CUDA}-libs"
BINDINGS = f"tensorrt-rtx-cu{CUDA}-bindings"

COMPUTE_CAPABILITIES: dict[str, str] = {
    "7.5": "SM75",
    "8.0": "SM80",
    "8.6": "SM86",
    "8.9": "SM89",
    "12.0": "SM120",
    "12.1": "SM121",
}
"""Compute capability -> the name of trt.ComputeCapability. Hopper (9.0) and data-center
Blackwell (10.0) are not among them."""

OWN_PLAN = {"7.5"}
"""NVIDIA advises against one plan for Turing and others; decision 0200."""


class TensorRTRTX:
    """Cross-builds through the Builder API of tensorrt_rtx_bindings."""

    name = NAME
    cross = True

    def identity(self) -> ToolchainId:
        build = installed_build(NAME, LIBRARIES, BINDINGS)
        if build is None:
            raise ToolchainError(
                f"toolchain {NAME}: TensorRT-RTX is not installed",
                fix="pip install 'enginefarm[farm]'",
            )
        return built_here(NAME, build, CUDA)

    def carries(self, gpu: GpuTarget, precision: PrecisionName) -> tuple[str, ...]:
        """One plan for every GPU here costs what a plan for one does: measured, decision 0200."""
        shared = tuple(
            capability
            for capability in COMPUTE_CAPABILITIES
            if gpus.has_precision(capability, precision) and capability not in OWN_PLAN
        )
        return shared if gpu.compute_capability in shared else ()

    def check(self, spec: BuildSpec) -> None:
        capability = spec.gpu.compute_capability
        if capability not in COMPUTE_CAPABILITIES:
            raise ToolchainError(
                f"toolchain {NAME}: cannot build for {spec.gpu.label} "
                f"(compute capability {capability})",
                why=f"TensorRT-RTX builds for {', '.join(COMPUTE_CAPABILITIES)}",
                fix="use toolchain `tensorrt` or `trtexec` on a worker that has the GPU",
            )
        for option, wanted, why in _refused(spec):
            if wanted:
                raise ToolchainError(
                    f"{option}: toolchain {NAME} does not have it",
                    why=why,
                    fix=f"leave {option} out, or use toolchain `tensorrt`",
                )

    def build(self, request: BuildRequest) -> BuildOutput:
        trt: Any = import_module("tensorrt_rtx_bindings")
        self.check(request.spec)
        began = time.monotonic()
        messages = Messages()
        logger, builder = started(trt, "TensorRT-RTX's builder", trt.Builder, (), messages)
        network = create("TensorRT-RTX's builder", builder.create_network, 0, messages=messages)
        parser = create(
            "TensorRT-RTX's ONNX parser", trt.OnnxParser, network, logger, messages=messages
        )
        parsing.parse_onnx(parser, network, request.onnx, messages, NAME)
        parsing.let_attention_decompose(trt, network)
        config = _config(trt, builder, request.spec)
        builder_api.add_profiles(builder, config, network, request.spec.profiles)
        monitor = builder_api.make_monitor(trt)
        config.progress_monitor = monitor
        layers = builder_api.write_network(network, request.work_dir / "layers.json")
        plan = request.work_dir / "engine.plan"
        builder_api.write_plan(builder, network, config, plan, messages)
        return BuildOutput(
            plan=plan,
            tensors=builder_api.network_tensors(network, request.onnx),
            seconds=time.monotonic() - began,
            layers=layers,
            compute_capabilities=request.spec.compute_capabilities,
            details={"layers": network.num_layers},
        )


def _refused(spec: BuildSpec) -> tuple[tuple[str, bool, str], ...]:
    """(option, asked for, why it is refused), each tried against 1.7.1."""
    return (
        (
            "builder.compatibility",
            spec.builder.compatibility != "none",
            "the setting has no effect here; a plan already runs on every GPU of "
            "its compute capability",
        ),
        ("builder.tactic_sources", spec.builder.tactic_sources is not None, "no tactics are timed"),
        ("builder.attempts", spec.builder.attempts > 1, "builds repeat: a lottery has one ticket"),
        ("plugins", bool(spec.plugins), "plugins cannot be serialized into its plans"),
    )


def _config(trt: Any, builder: Any, spec: BuildSpec) -> Any:
    config = builder.create_builder_config()
    carried = spec.compute_capabilities or (spec.gpu.compute_capability,)
    builder_api.set_checked(config, "num_compute_capabilities", len(carried), "gpu")
    for index, name in enumerate(carried):
        capability = getattr(trt.ComputeCapability, COMPUTE_CAPABILITIES[name])
        config.set_compute_capability(capability, index)
        if config.get_compute_capability(index) != capability:
            raise BuildError(f"gpu: the builder did not keep {capability}")
    builder_api.set_common(trt, config, spec.builder)
    if spec.builder.version_compatible:
        for flag in ("VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"):
            builder_api.set_flag(trt, config, flag, "builder.version_compatible")
    return config
