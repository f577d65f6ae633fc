"""ONNX Runtime with its TensorRT execution provider: an EPContext model as the artifact.

The artifact is an ONNX file whose one node holds the engine; run/ort_engine.py runs it. ONNX
Runtime's own engine cache has weak keys (it once reused engines of another precision) and is
never switched on: what names an artifact is our spec digest.
"""

from __future__ import annotations

import time
from pathlib import Path

from pydantic import JsonValue

from enginefarm.documents.manifest import TensorInfo
from enginefarm.documents.spec import BuildSpec, GpuTarget, ShapeProfile, ToolchainId
from enginefarm.errors import BuildError, HostError, ToolchainError, one_line
from enginefarm.graph.model import ort
from enginefarm.graph.model.onnx_files import graph_only
from enginefarm.host.runtimes import ORT_PACKAGE, ort_tensorrt
from enginefarm.names import PrecisionName
from enginefarm.run.ort_engine import PROVIDER
from enginefarm.toolchains import (
    BuildOutput,
    BuildRequest,
    built_here,
    built_plan,
    shapes_option,
)
from enginefarm.toolchains.onnx_io import onnx_tensors, require_graphs
from enginefarm.toolchains.tensorrt import require_ampere, require_gpu

NAME = "ort-trt"
PRECISION_OPTIONS: dict[str, tuple[str, ...]] = {
    "fp32": (),
    "fp16": ("trt_fp16_enable",),
    "bf16": ("trt_bf16_enable",),
    "int8": ("trt_int8_enable", "trt_fp16_enable"),
}
"""The provider's networks are weakly typed: a precision of the graph must be allowed too."""

COLON = (
    "ONNX Runtime's TensorRT provider takes what stands before the first colon for the name, "
    "so it finds no range of shapes for this input"
)


class OrtTensorRT:
    """Builds inside ONNX Runtime, on the GPU that the artifact is for."""

    name = NAME
    cross = False

    def identity(self) -> ToolchainId:
        found = ort_tensorrt()
        if found is None:
            raise ToolchainError(
                f"toolchain {NAME}: {ORT_PACKAGE} is not installed",
                fix=f"pip install {ORT_PACKAGE} tensorrt-cu12",
            )
        if found.build is None or found.cuda is None:
            raise ToolchainError(
                f"toolchain {NAME}: the TensorRT that {ORT_PACKAGE} {found.onnxruntime} needs "
                "is not installed",
                fix="pip install tensorrt-cu12",
            )
        return built_here(NAME, found.build, found.cuda)

    def carries(self, gpu: GpuTarget, precision: PrecisionName) -> tuple[str, ...]:
        return ()

    def check(self, spec: BuildSpec) -> None:
        if spec.precision.name not in PRECISION_OPTIONS:
            raise ToolchainError(
                f"toolchain {NAME}: it has no {spec.precision.name}",
                fix=f"use one of: {', '.join(PRECISION_OPTIONS)}; or toolchain `tensorrt`",
            )
        if len(spec.profiles) > 1:
            raise ToolchainError(
                f"profiles: toolchain {NAME} takes one, and there are {len(spec.profiles)}",
                why="ONNX Runtime builds all of them into the engine, and runs only the first",
                fix="make one profile that covers them, or use toolchain `tensorrt` or `trtexec`",
            )
        for name in (one for profile in spec.profiles for one in unsayable(profile)):
            raise ToolchainError(
                f"toolchain {NAME}: the input {name!r} has a colon in its name",
                why=COLON,
                fix="rename the input in the model, or use toolchain `tensorrt` or `trtexec`",
            )
        require_ampere(spec)
        options = spec.builder
        for option, wanted in (
            ("builder.version_compatible", options.version_compatible),
            ("builder.compatibility", options.compatibility == "same_compute_capability"),
        ):
            if wanted:
                raise ToolchainError(
                    f"{option}: toolchain {NAME} does not have it",
                    why="the provider has no such option",
                    fix="use toolchain `tensorrt` or `trtexec`",
                )

    def build(self, request: BuildRequest) -> BuildOutput:
        self.check(request.spec)
        require_gpu(request.spec)
        built_plan.require_bindings(NAME)
        started = time.monotonic()
        plan = request.work_dir / "engine.plan"
        options = provider_options(request, plan)
        try:
            ort.on_provider(request.onnx, PROVIDER, options, log_severity=ort.EVERYTHING)
        except HostError:
            raise
        except Exception as error:
            raise BuildError(f"{PROVIDER} refused the model", why=one_line(error)) from error
        if not plan.is_file():
            raise BuildError(
                f"{PROVIDER} did not take the whole model",
                why="it wrote no context model",
                fix="see build.log for the operators that it leaves to the CPU",
            )
        tensors = require_whole(plan, request)
        return BuildOutput(
            plan=plan,
            tensors=tensors,
            seconds=time.monotonic() - started,
            details={"provider_options": dict(options), "valid_for": validity(request.spec)},
        )


def require_whole(artifact: Path, request: BuildRequest) -> tuple[TensorInfo, ...]:
    """Inputs and outputs of an artifact, which is the request's whole graph in one engine.

    Types are those of the artifact's ONNX graph: the provider itself converts some for TensorRT.
    Raises: BuildError where it is another graph, or its engine has other names or profiles.
    """
    graph = graph_only(artifact).graph
    kinds = [node.op_type for node in graph.node]
    engines = [
        attribute.s
        for node in graph.node
        for attribute in node.attribute
        if attribute.name == "ep_cache_context"
    ]
    if kinds != ["EPContext"] or not all(engines):
        raise BuildError(
            f"{PROVIDER} did not take the whole model",
            why=f"its context model has the nodes {', '.join(kinds) or 'none'}, in place of one "
            "EPContext that holds the engine",
            fix="see build.log for the operators that it leaves to the CPU",
        )
    tensors = onnx_tensors(artifact)
    require_graphs(tensors, request.onnx)
    plan = request.work_dir / "embedded.plan"
    plan.write_bytes(engines[0])
    found = built_plan.contents(plan, request)
    plan.unlink()
    made = {(t.role, t.name) for t in found.tensors}
    if made != {(t.role, t.name) for t in tensors}:
        names = ", ".join(sorted(f"{role} {name!r}" for role, name in made))
        raise BuildError(
            "the engine has other inputs and outputs than the context model around it",
            why=f"the engine has {names}",
            fix="use toolchain `tensorrt` or `trtexec`",
        )
    built_plan.require_profiles(found, request.spec)
    return tensors


def provider_options(request: BuildRequest, plan: Path) -> dict[str, JsonValue]:
    """Options of the TensorRT provider; names are checked against a recorded list."""
    spec = request.spec
    options: dict[str, JsonValue] = {
        "trt_dump_ep_context_model": "True",
        "trt_ep_context_file_path": str(plan),
        "trt_ep_context_embed_mode": "1",
        "trt_builder_optimization_level": str(spec.builder.optimization_level),
    }
    options |= graph_options(spec.precision.name, spec.profiles[0])
    if spec.builder.workspace_mib is not None:
        options["trt_max_workspace_size"] = str(spec.builder.workspace_mib << 20)
    if spec.builder.compatibility == "ampere_plus":
        options["trt_engine_hw_compatible"] = "True"
    if spec.builder.sparse_weights:
        options["trt_sparsity_enable"] = "True"
    if spec.builder.tactic_sources is not None:
        options["trt_tactic_sources"] = ",".join(f"+{name}" for name in spec.builder.tactic_sources)
    if request.plugins:
        options["trt_extra_plugin_lib_paths"] = ";".join(map(str, request.plugins))
    return options


def graph_options(precision: str, profile: ShapeProfile) -> dict[str, str]:
    """What the provider must be told of any graph: its precision, and its shapes.

    precision: one of PRECISION_OPTIONS. profile: without `unsayable` inputs.
    """
    options = dict.fromkeys(PRECISION_OPTIONS[precision], "True")
    named = {name: shape for name, shape in profile.shapes.items() if ":" not in name}
    for point in ("min", "opt", "max"):
        if named:
            told = profile.model_copy(update={"shapes": named})
            options[f"trt_profile_{point}_shapes"] = shapes_option(told, point)
    return options


def unsayable(profile: ShapeProfile) -> list[str]:
    """Inputs whose range of shapes the provider cannot be told: it reads `NAME:SHAPE` up to the
    first colon. An input of one shape needs no range."""
    return [
        name for name, shape in profile.shapes.items() if ":" in name and shape.min != shape.max
    ]


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
