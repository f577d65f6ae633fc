"""A valid manifest for tests of the store, the selection and pull. No engine is built."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from enginefarm.digest import sha256_bytes
from enginefarm.documents.builder import BuilderOptions
from enginefarm.documents.comparing import OutputComparison
from enginefarm.documents.gpus import gpu
from enginefarm.documents.manifest import (
    BuildRecord,
    DeviceVerification,
    Environment,
    GraphVerification,
    Manifest,
    TensorInfo,
)
from enginefarm.documents.spec import (
    BlobRef,
    BuildSpec,
    CalibrationUse,
    GpuTarget,
    MinOptMax,
    OnnxRef,
    PrecisionUse,
    ShapeProfile,
    ToolchainId,
    ToolUse,
)

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


CALIBRATED = CalibrationUse(
    data_digest="c" * 64, method="entropy", percentile=None, batches=16, batch_size=8, seed=0
)


def ref(data: bytes) -> BlobRef:
    return BlobRef(digest=sha256_bytes(data), size_bytes=len(data))


def make_spec(
    *,
    label: str = "t4",
    precision: Any = "fp16",
    toolchain: Any = "tensorrt",
    build: str = "10.16.1.11",
    cuda: str = "13",
    system: tuple[str, str] = ("linux", "x86_64"),
    graph: bytes = b"graph",
    salt: str = "",
    plugins: tuple[str, ...] = (),
    profiles: tuple[str, ...] = ("default",),
    **builder: Any,
) -> BuildSpec:
    row = gpu(label)
    return BuildSpec(
        salt=salt,
        onnx_digest=sha256_bytes(graph),
        exporter=ToolUse(name="torch", version="2.13.0"),
        slimmer=ToolUse(name="onnxslim", version="0.1.98"),
        precision=PrecisionUse(name=precision, tools=()),
        profiles=tuple(
            ShapeProfile(name=name, shapes={"x": MinOptMax(min=(1, 3), opt=(8, 3), max=(32, 3))})
            for name in profiles
        ),
        gpu=GpuTarget(label=row.label, compute_capability=row.compute_capability),
        toolchain=ToolchainId(name=toolchain, build=build, cuda=cuda, os=system[0], arch=system[1]),
        builder=BuilderOptions(**builder),
        plugins=plugins,
    )


def make_manifest(
    recipe: str = "model",
    *,
    engine: bytes = b"engine",
    minutes: float = 0,
    over_budget: tuple[str, ...] = (),
    on_device: Any = "pending",
    **spec: Any,
) -> Manifest:
    """minutes: created that long after noon. spec: as make_spec's."""
    made = make_spec(**spec)
    graph = ref(spec.get("graph", b"graph"))
    return Manifest(
        recipe=recipe,
        spec=made,
        spec_digest=made.digest,
        engine=ref(engine),
        graph=OnnxRef(model=graph, opset=20),
        tensors=(
            TensorInfo(
                name="x", dtype="float32", shape=(-1, 3), role="input", dims=("batch", None)
            ),
            TensorInfo(
                name="y", dtype="float32", shape=(-1, 10), role="output", dims=("batch", None)
            ),
        ),
        verification=GraphVerification(
            samples=32,
            runtime="onnxruntime 1.32",
            outputs=(OutputComparison(output="y", cosine=1, max_abs=0, relative_l2=0),),
            over_budget=over_budget,
        ),
        device_verification=DeviceVerification(status=on_device),
        build=BuildRecord(seconds=1, peak_memory_bytes=1),
        environment=Environment(host="farm", os="linux", arch="x86_64", python="3.11", packages={}),
        created_at=NOON + timedelta(minutes=minutes),
    )
