"""ONNX Runtime with its TensorRT execution provider: an EPContext model as the artifact.

The artifact is an ONNX file whose one node holds the engine. ONNX Runtime's own engine cache
has weak keys (it once reused engines of another precision), so it gets an empty folder for
each build and is never read back: what names an artifact is our spec digest.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from enginefarm.errors import BuildError, ToolchainError
from enginefarm.recipe import PrecisionName
from enginefarm.spec import BuildSpec, GpuTarget, MinOptMax, ToolchainId
from enginefarm.toolchains import BuildOutput, BuildRequest
from enginefarm.toolchains.onnx_io import onnx_tensors
from enginefarm.toolchains.tensorrt import require_gpu

NAME = "ort-trt"
PROVIDER = "TensorrtExecutionProvider"
PACKAGE = "onnxruntime-gpu"
PRECISION_OPTIONS: dict[str, tuple[str, ...]] = {
    "fp32": (),
    "fp16": ("trt_fp16_enable",),
    "bf16": ("trt_bf16_enable",),
    "int8": ("trt_int8_enable", "trt_fp16_enable"),
}
"""The provider's networks are weakly typed: a precision of the graph must be allowed too."""


class OrtTensorRT:
    """Builds inside ONNX Runtime, on the GPU that the artifact is for."""

    name = NAME
    cross = False

    def identity(self) -> ToolchainId:
        try:
            runtime = version(PACKAGE)
        except PackageNotFoundError:
            raise ToolchainError(
                f"toolchain {NAME}: {PACKAGE} is not installed",
                fix=f"pip install {PACKAGE} tensorrt-cu12",
            ) from None
        for cuda in ("13", "12"):
            try:
                tensorrt = version(f"tensorrt-cu{cuda}-libs")
            except PackageNotFoundError:
                continue
            return ToolchainId(
                name=NAME,
                build=f"{runtime}+tensorrt.{tensorrt}",
                cuda=cuda,
                os=platform.system().lower(),
                arch=platform.machine(),
            )
        raise ToolchainError(
            f"toolchain {NAME}: the TensorRT that {PACKAGE} {runtime} needs is not installed",
            fix="pip install tensorrt-cu12",
        )

    def carries(self, gpu: GpuTarget, precision: PrecisionName) -> tuple[str, ...]:
        return ()

    def check(self, spec: BuildSpec) -> None:
        if spec.precision.name not in PRECISION_OPTIONS:
            raise ToolchainError(
                f"toolchain {NAME}: it has no {spec.precision.name}",
                fix=f"use one of: {', '.join(PRECISION_OPTIONS)}; or toolchain `tensorrt`",
            )
        options = spec.builder
        for option, wanted in (
            ("builder.refit", options.refit),
            ("builder.version_compatible", options.version_compatible),
            ("builder.classic_int8", options.classic_int8),
            ("builder.compatibility", options.compatibility == "same_compute_capability"),
        ):
            if wanted:
                raise ToolchainError(
                    f"{option}: toolchain {NAME} does not have it",
                    why="the provider has no option of that meaning",
                    fix="use toolchain `tensorrt` or `trtexec`",
                )

    def build(self, request: BuildRequest) -> BuildOutput:
        self.check(request.spec)
        require_gpu(request.spec)
        ort: Any = import_module("onnxruntime")
        if PROVIDER not in ort.get_available_providers():
            raise ToolchainError(
                f"toolchain {NAME}: this ONNX Runtime has no {PROVIDER}",
                fix=f"pip install {PACKAGE} in place of onnxruntime",
            )
        started = time.monotonic()
        plan = request.work_dir / "engine.plan"
        settings = ort.SessionOptions()
        settings.log_severity_level = 1
        options = provider_options(request, plan)
        session = ort.InferenceSession(
            str(request.onnx),
            settings,
            providers=[(PROVIDER, options)],
            # With it ONNX Runtime 1.32 computes Q/DQ with FP16 scales wrongly.
            disabled_optimizers=["WeightBiasQuantization"],
        )
        if session.get_providers()[0] != PROVIDER or not plan.is_file():
            raise BuildError(
                f"{PROVIDER} did not take the model",
                why=f"the session runs on {', '.join(session.get_providers())}",
                fix="see build.log for the operators that it leaves to the CPU",
            )
        return BuildOutput(
            plan=plan,
            tensors=onnx_tensors(request.onnx),
            seconds=time.monotonic() - started,
            timing_cache=_timing_cache(request.work_dir),
            details={"provider_options": dict(options), "valid_for": validity(request.spec)},
        )


def provider_options(request: BuildRequest, plan: Path) -> dict[str, JsonValue]:
    """Options of the TensorRT provider; names are checked against a recorded list."""
    spec, folder = request.spec, request.work_dir
    options: dict[str, JsonValue] = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder / "engine-cache"),
        "trt_engine_cache_prefix": spec.digest[:16],
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder / "timing-cache"),
        "trt_dump_ep_context_model": "1",
        "trt_ep_context_file_path": str(plan),
        "trt_ep_context_embed_mode": "1",
        "trt_builder_optimization_level": str(spec.builder.optimization_level),
    }
    for name in PRECISION_OPTIONS[spec.precision.name]:
        options[name] = "1"
    if spec.builder.workspace_mib is not None:
        options["trt_max_workspace_size"] = str(spec.builder.workspace_mib << 20)
    if spec.builder.compatibility == "ampere_plus":
        options["trt_engine_hw_compatible"] = "1"
    if spec.builder.sparse_weights:
        options["trt_sparsity_enable"] = "1"
    if spec.builder.strip_plan:
        options["trt_weight_stripped_engine_enable"] = "1"
    if spec.builder.tactic_sources is not None:
        options["trt_tactic_sources"] = ",".join(f"+{name}" for name in spec.builder.tactic_sources)
    if request.plugins:
        options["trt_extra_plugin_lib_paths"] = ";".join(map(str, request.plugins))
    for point in ("min", "opt", "max"):
        shapes = [text for profile in spec.profiles if (text := _shapes(profile.shapes, point))]
        if shapes:
            options[f"trt_profile_{point}_shapes"] = ",".join(shapes)
    return options


def validity(spec: BuildSpec) -> str:
    """When an artifact may be loaded: everything of this must be equal on the host."""
    where = (
        "any GPU from Ampere on"
        if spec.builder.compatibility == "ampere_plus"
        else f"compute capability {spec.gpu.compute_capability}"
    )
    return (
        f"ONNX Runtime and TensorRT {spec.toolchain.build}, CUDA {spec.toolchain.cuda}, "
        f"{where}, {spec.toolchain.os}/{spec.toolchain.arch}"
    )


def _shapes(shapes: Mapping[str, MinOptMax], point: str) -> str:
    return ",".join(
        f"{name}:{'x'.join(str(dim) for dim in getattr(bounds, point))}"
        for name, bounds in shapes.items()
    )


def _timing_cache(folder: Path) -> Path | None:
    return next(iter(sorted((folder / "timing-cache").glob("*.timing"))), None)
