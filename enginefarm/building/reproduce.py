"""An engine's build as a folder that needs nothing of ours: what a bug report to NVIDIA needs.

reproduce.py, build.json     the same build through the Builder API
trtexec.sh                   the same build as a command line, and a run on the reference inputs
model.onnx[.data]            the graph as the builder got it
reference.npz                inputs, and the FP32 outputs of the model itself
inputs/NAME.bin              the first batch, as trtexec --loadInputs reads it
calibration.json             the scales of the quantized tensors, which are in the graph
README.md                    what is compared, and what is not
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from enginefarm.building.signing_checks import SMALLER_WORKSPACE
from enginefarm.documents.manifest import Manifest
from enginefarm.documents.spec import BlobRef
from enginefarm.errors import StoreMissing, ToolchainError, UsageError
from enginefarm.graph.model import onnx_files
from enginefarm.graph.verification.reference import read_reference
from enginefarm.names import runtime_of
from enginefarm.store.disk import clone_checked, writing
from enginefarm.store.site import Site, materialize
from enginefarm.tables.layers import layers_of
from enginefarm.toolchains import BuildRequest, tensorrt_rtx, trtexec
from enginefarm.toolchains.tensorrt import COMPATIBILITY

Writer = Callable[[Manifest, dict[str, tuple[int, ...]]], str]

NOT_COMPARED = {
    True: "outputs, fusions and tactics, which TensorRT-RTX decides on the GPU",
    False: "outputs; trtexec.sh runs the engine, and --outputs compares what it wrote",
}


def reproduce(site: Site, manifest: Manifest, folder: Path) -> Path:
    """Writes the folder, which must not exist yet, or be empty. Returns it.

    Raises: ToolchainError for a toolchain that does not build through the Builder API or
    trtexec; UsageError for a folder that holds something; what the store raises.
    """
    write = WRITERS.get(manifest.spec.toolchain.name)
    if write is None:
        raise ToolchainError(
            f"reproduce: engines of toolchain {manifest.spec.toolchain.name} cannot be reproduced",
            why="enginefarm cannot write its builds for TensorRT's Builder API",
            fix=f"reproduce an engine of {', '.join(WRITERS)}",
        )
    if manifest.spec.plugins:
        raise ToolchainError(
            "reproduce: engines with plugin libraries cannot be reproduced",
            why="the farm does not know what these libraries link to",
        )
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"reproduce: the folder {folder} is not empty", fix="name a new folder")
    if manifest.reference is None:
        raise StoreMissing(
            "reproduce: the engine's manifest names no reference inputs and outputs",
            fix="build the recipe again",
        )
    try:
        _fill(site, manifest, manifest.reference, folder, write)
    except BaseException:  # half a folder would be in the way of the next try
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _fill(site: Site, manifest: Manifest, reference: BlobRef, folder: Path, write: Writer) -> None:
    with writing(folder):
        materialize(site, manifest.graph, folder)
        shutil.copyfile(
            str(files("enginefarm.building") / "standalone.py"), folder / "reproduce.py"
        )
        asked = build_json(site, manifest)
        (folder / "build.json").write_text(json.dumps(asked, indent=2) + "\n", "utf-8")
        inputs = _reference(site, manifest, reference, folder)
        scales = [*_scales(folder / "model.onnx")]
        text = json.dumps({"quantized": scales}, indent=2)
        (folder / "calibration.json").write_text(text + "\n", "utf-8")
        (folder / "trtexec.sh").write_text(write(manifest, inputs), "utf-8")
        (folder / "README.md").write_text(_readme(manifest, len(scales)), "utf-8")


def build_json(site: Site, manifest: Manifest) -> dict[str, Any]:
    """Everything that the builder is asked for, by the Builder API's own names."""
    spec, options = manifest.spec, manifest.spec.builder
    portable = runtime_of(spec.toolchain.name)[1].portable
    carried = manifest.build.compute_capabilities or (spec.gpu.compute_capability,)
    workspace = _workspace_mib(manifest)
    flags = [
        *(["VERSION_COMPATIBLE"] if options.version_compatible else []),
        *(["EXCLUDE_LEAN_RUNTIME"] if options.version_compatible and portable else []),
        *(["SPARSE_WEIGHTS"] if options.sparse_weights else []),
        *(["REFIT"] if options.refit else []),
    ]
    return {
        "toolchain": spec.toolchain.name,
        "build": spec.toolchain.build,
        "gpu": spec.gpu.label,
        "optimization_level": options.optimization_level,
        "compute_capabilities": [tensorrt_rtx.COMPUTE_CAPABILITIES[one] for one in carried]
        if portable
        else [],
        "hardware_compatibility": None if portable else COMPATIBILITY[options.compatibility],
        "detailed_profiling": not portable,
        "workspace_bytes": None if workspace is None else workspace << 20,
        "tactic_sources": options.tactic_sources,
        "flags": flags,
        "cleared_flags": ["TF32"],
        "profiles": [
            {name: [s.min, s.opt, s.max] for name, s in profile.shapes.items()}
            for profile in spec.profiles
        ],
        "original": {
            "sha256": manifest.engine.digest,
            "size_bytes": manifest.engine.size_bytes,
            "network_layers": _network_layers(site, manifest),
            "not_compared": NOT_COMPARED[portable],
        },
    }


def _workspace_mib(manifest: Manifest) -> int | None:
    """The spec's, or what the one retry after an out-of-memory had."""
    smaller = manifest.build.details.get(SMALLER_WORKSPACE)
    return int(str(smaller)) if smaller else manifest.spec.builder.workspace_mib


def _network_layers(site: Site, manifest: Manifest) -> list[str] | None:
    """Names of the parsed network's layers; None where the engine's own were stored."""
    try:
        found = layers_of(site.store, manifest)
    except StoreMissing:
        return None
    return [layer.name for layer in found.layers] if found.network else None


def _reference(
    site: Site, manifest: Manifest, reference: BlobRef, folder: Path
) -> dict[str, tuple[int, ...]]:
    """reference.npz and the first batch as raw files; returns each input's shape."""
    path = folder / "reference.npz"
    clone_checked(site.cache.ensure(site.store, reference), path, reference)
    (folder / "inputs").mkdir()
    batch = next(read_reference(path))
    for name, array in batch.inputs.items():
        kind = _numpy_type(next(one.dtype for one in manifest.tensors if one.name == name))
        (folder / "inputs" / _file_of(name)).write_bytes(array.astype(kind).tobytes())
    return {name: tuple(array.shape) for name, array in batch.inputs.items()}


def _numpy_type(dtype: str) -> Any:
    """The engine's own type: what trtexec reads is not converted."""
    if dtype != "bfloat16":
        return dtype
    import ml_dtypes

    return ml_dtypes.bfloat16


def _file_of(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name) + ".bin"


def _scales(model: Path) -> Iterator[dict[str, Any]]:
    """The calibration table: the scale of each quantized tensor, out of the graph itself."""
    from onnx import numpy_helper

    graph = onnx_files.read(model).graph
    constants = {one.name: one for one in graph.initializer}
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or len(node.input) < 2:
            continue
        scale = constants.get(node.input[1])
        if scale is not None and not scale.external_data:
            values = numpy_helper.to_array(scale).ravel()
            yield {
                "tensor": node.input[0],
                "node": node.name,
                "scales": [float(value) for value in values],
            }


def _with_trtexec(manifest: Manifest, inputs: dict[str, tuple[int, ...]]) -> str:
    """A shell script: the build, then a run on the first batch of the reference."""
    spec = manifest.spec.model_copy(
        update={
            "builder": manifest.spec.builder.model_copy(
                update={"workspace_mib": _workspace_mib(manifest)}
            )
        }
    )
    asked = BuildRequest(spec=spec, onnx=Path("model.onnx"), work_dir=Path())
    build = trtexec.command(asked, program="trtexec")
    loads = ",".join(f"{name}:inputs/{_file_of(name)}" for name in inputs)
    shapes = ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in inputs.items())
    run = ["trtexec", "--loadEngine=engine.plan", f"--loadInputs={loads}", f"--shapes={shapes}"]
    run += ["--exportOutput=outputs.json"]
    compare = "python reproduce.py --outputs outputs.json"
    return f"{SHELL}{shlex.join(build)}\n{shlex.join(run)}\n{compare}\n"


def _without_trtexec(manifest: Manifest, _: dict[str, tuple[int, ...]]) -> str:
    return (
        f"{SHELL}# trtexec cannot build plans of TensorRT-RTX, and its own program was not found\n"
        "# when this was written: reproduce.py is the whole of it.\npython reproduce.py\n"
    )


SHELL = '#!/bin/sh\nset -eu\ncd "$(dirname "$0")"\n'
WRITERS: dict[str, Writer] = {
    "tensorrt": _with_trtexec,
    "trtexec": _with_trtexec,
    tensorrt_rtx.NAME: _without_trtexec,
}
"""Toolchain -> what trtexec.sh holds."""


def _readme(manifest: Manifest, quantized: int) -> str:
    spec, built_with = manifest.spec, manifest.spec.toolchain
    portable = runtime_of(built_with.name)[1].portable
    package = "tensorrt-rtx" if portable else f"tensorrt-cu{built_with.cuda.split('.')[0]}"
    return f"""# {manifest.recipe} {spec.label}, spec {manifest.spec_digest[:12]}

{built_with.name} {built_with.build} (CUDA {built_with.cuda}), built for {spec.gpu.label}.

    pip install numpy {package}=={built_with.build}
    python reproduce.py

It builds model.onnx again with what build.json says, and compares the plan with the farm's:
its bytes, its size and the network's layers. A native build times kernels, so its bytes seldom
repeat. Not compared: {NOT_COMPARED[portable]}.

reference.npz holds `NNNN/input/NAME` and `NNNN/output/NAME`: what the model itself returns in FP32.
{quantized} tensors are quantized. Their scales are in the graph; calibration.json lists them.
"""
