"""Specs and requests of builds, for tests that need one of no model in particular."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from enginefarm.documents.builder import BuilderOptions
from enginefarm.documents.spec import (
    BuildSpec,
    GpuTarget,
    MinOptMax,
    PrecisionUse,
    ShapeProfile,
    ToolchainId,
    ToolUse,
)
from enginefarm.toolchains import BuildRequest

IMAGES = {"x": MinOptMax(min=(1, 3, 224, 224), opt=(8, 3, 224, 224), max=(32, 3, 224, 224))}
TEXT = {
    "ids": MinOptMax(min=(1, 1), opt=(1, 64), max=(4, 128)),
    "mask": MinOptMax(min=(1, 1), opt=(1, 64), max=(4, 128)),
}


def spec(
    toolchain: str | ToolchainId = "tensorrt",
    build: str = "10.16.1.11",
    *,
    precision: str = "fp16",
    gpu: tuple[str, str] = ("a100", "8.0"),
    profiles: tuple[dict[str, MinOptMax] | ShapeProfile, ...] = (IMAGES,),
    **builder: Any,
) -> BuildSpec:
    """toolchain: a name, or the whole identity. gpu: its label and compute capability."""
    if isinstance(toolchain, str):
        toolchain = ToolchainId.model_validate(
            {"name": toolchain, "build": build, "cuda": "13", "os": "linux", "arch": "x86_64"}
        )
    none = ToolUse(name="none", version="0")
    return BuildSpec.model_validate(
        {
            "onnx_digest": "0" * 64,
            "exporter": none,
            "slimmer": none,
            "precision": PrecisionUse.model_validate({"name": precision, "tools": ()}),
            "profiles": tuple(
                shapes
                if isinstance(shapes, ShapeProfile)
                else ShapeProfile(name=f"p{index}", shapes=shapes)
                for index, shapes in enumerate(profiles)
            ),
            "gpu": GpuTarget(label=gpu[0], compute_capability=gpu[1]),
            "toolchain": toolchain,
            "builder": BuilderOptions(**builder),
        }
    )


def request(made: BuildSpec, **more: Any) -> BuildRequest:
    return BuildRequest(spec=made, onnx=Path("/w/model.onnx"), work_dir=Path("/w/out"), **more)
