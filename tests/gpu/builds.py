"""Specs and requests for builds on the GPU at hand, by TensorRT 8.6 (trt86_toolchain.py)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from trt86_toolchain import TensorRT86

from enginefarm.documents.gpus import gpu
from enginefarm.documents.spec import MinOptMax, ShapeProfile
from enginefarm.toolchains import BuildRequest
from tests.specs import spec

LABEL = os.environ.get("ENGINEFARM_GPU_LABEL", "h100")
# cuBLAS and cuDNN of CUDA 12 are not on the machine; TensorRT's own kernels are enough.
TACTIC_SOURCES = ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
PICTURES = {"images": MinOptMax(min=(1, 3, 224, 224), opt=(8, 3, 224, 224), max=(32, 3, 224, 224))}
CONV = {"x": MinOptMax(min=(1, 3, 16, 16), opt=(2, 3, 16, 16), max=(64, 3, 16, 16))}


def request(
    onnx: Path,
    work_dir: Path,
    shapes: dict[str, MinOptMax],
    *,
    precision: Any = "fp32",
    label: str = LABEL,
    plugins: tuple[Path, ...] = (),
    timeout_s: float = 300,
    **options: Any,
) -> BuildRequest:
    row = gpu(label)
    made = spec(
        TensorRT86().identity(),
        precision=precision,
        gpu=(row.label, row.compute_capability),
        profiles=(ShapeProfile(name="default", shapes=shapes),),
        **{"tactic_sources": TACTIC_SOURCES, **options},
    )
    return BuildRequest(
        spec=made,
        onnx=onnx,
        work_dir=work_dir,
        plugins=plugins,
        timeout_s=timeout_s,
    )
