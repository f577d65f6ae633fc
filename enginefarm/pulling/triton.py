"""A model repository for Triton: plans, and a config.pbtxt that selects the right one.

Triton selects a plan only by compute capability (`cc_model_filenames`). If two GPUs share one, each
GPU gets its own repository. No file has the default name, so that a GPU that is not listed fails to
load instead of loading another GPU's plan.
Source of the format: Triton's model_config.proto.
"""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from enginefarm.documents.builder import DTYPES, DType
from enginefarm.documents.manifest import Manifest, TensorInfo
from enginefarm.documents.spec import BlobRef, ShapeProfile
from enginefarm.errors import StoreMissing, ToolchainError, UsageError, command
from enginefarm.names import PRECISION_ORDER, PrecisionName, runtime_of

MAX_QUEUE_DELAY_US = 100
BACKEND = "/opt/tritonserver/backends/tensorrt"
BATCH_DIMS = ("batch", "batch_size", "n")
"""Names in recipes for the dim along which Triton may join requests."""


@dataclass(frozen=True)
class RepositoryFile:
    """One file: our own bytes, or a blob of the store."""

    path: str
    content: bytes | BlobRef


def repository(
    manifests: Iterable[Manifest], *, name: str, version: int = 1
) -> tuple[RepositoryFile, ...]:
    """The files of a repository for engines of one model and precision, one for each GPU.

    version: the only version that Triton serves; folders of other versions are left alone.
    Plans come first, and each model's config last. Raises: ToolchainError when Triton cannot load
    an engine, or when the engines differ in inputs or outputs; UsageError for a name that is not
    one folder.
    """
    if re.fullmatch(r"[A-Za-z0-9_][\w.-]{0,199}", name, re.ASCII) is None:
        raise UsageError(
            f"{command('triton-repo')}: {name!r} cannot be the name of a model",
            why="the name is also the name of a folder",
            fix="use letters, digits, and . _ - between them",
        )
    engines = sorted(manifests, key=lambda one: one.gpu)
    _loadable(engines)
    capabilities = [one.spec.gpu.compute_capability for one in engines]
    if len(set(capabilities)) == len(capabilities):
        return tuple(_model("", name, engines, version))
    return tuple(file for one in engines for file in _model(f"{one.gpu}/", name, [one], version))


def choose(
    manifests: Iterable[Manifest], recipe: str, precision: PrecisionName | None
) -> tuple[Manifest, ...]:
    """The newest engine of each GPU in a channel or recipe, all in one precision.

    precision: None takes the one that most GPUs have; of several, the first of PRECISION_ORDER.
    Raises: StoreMissing when the recipe has no engine.
    """
    newest: defaultdict[PrecisionName, dict[str, Manifest]] = defaultdict(dict)
    for one in sorted(manifests, key=lambda one: (one.created_at, one.spec_digest)):
        newest[one.precision][one.gpu] = one
    wanted: tuple[PrecisionName, ...] = (precision,) if precision else PRECISION_ORDER
    best = max(wanted, key=lambda one: (len(newest[one]), -PRECISION_ORDER.index(one)))
    if not newest[best]:
        precise = f" in {precision}" if precision else ""
        raise StoreMissing(f"{command('triton-repo')}: {recipe} has no engine{precise}")
    return tuple(newest[best].values())


def _loadable(engines: list[Manifest]) -> None:
    first = engines[0]
    for one in engines:
        if not runtime_of(one.spec.toolchain.name)[1].triton:
            raise ToolchainError(
                f"{command('triton-repo')}: {one.recipe} {one.spec.label} was built by "
                f"{one.spec.toolchain.name}",
                why="Triton's TensorRT backend loads only plans of TensorRT",
                fix="build it with toolchain `tensorrt` on a worker that has the GPU",
            )
        if (_comparable(one), one.spec.profiles) != (_comparable(first), first.spec.profiles):
            raise ToolchainError(
                f"{command('triton-repo')}: {one.spec.label} and {first.spec.label} of "
                f"{one.recipe} have different inputs, outputs or profiles",
                fix="build them from one recipe, and promote them together",
            )


def _comparable(engine: Manifest) -> tuple[TensorInfo, ...]:
    """What must be equal. Manifests of earlier versions do not have the names of dims."""
    return tuple(tensor.model_copy(update={"dims": ()}) for tensor in engine.tensors)


def _model(
    prefix: str, name: str, engines: list[Manifest], version: int
) -> Iterator[RepositoryFile]:
    for one in engines:
        yield RepositoryFile(f"{prefix}{name}/{version}/{plan_name(one)}", one.engine)
    yield RepositoryFile(f"{prefix}{name}/config.pbtxt", config(name, engines, version).encode())


def plan_name(manifest: Manifest) -> str:
    """The file name of a plan. It contains the digest, so that a new engine is a new file."""
    return f"{manifest.gpu}-{manifest.precision}-{manifest.engine.digest[:12]}.plan"


def config(name: str, engines: list[Manifest], version: int) -> str:
    """config.pbtxt for engines that differ only in their GPU. It names the version, because Triton
    would otherwise serve the highest one."""
    first = engines[0]
    profiles = first.spec.profiles
    batch = max_batch_size(first)
    skip = 1 if batch else 0
    platform = runtime_of(first.spec.toolchain.name)[1].triton
    lines = [f"name: {_quoted(name)}", f'platform: "{platform}"', f"max_batch_size: {batch}"]
    lines.append(f"version_policy {{ specific {{ versions: [ {version} ] }} }}")
    for tensor in first.tensors:
        lines.append(_tensor(tensor, skip))
    for one in engines:
        capability = one.spec.gpu.compute_capability
        lines.append(
            f"cc_model_filenames {{ key: {_quoted(capability)} value: {_quoted(plan_name(one))} }}"
        )
    chosen = ", ".join(f'"{index}"' for index in range(len(profiles)))
    lines.append(f"instance_group {{ count: 1 kind: KIND_GPU profile: [ {chosen} ] }}")
    if batch:
        preferred = sorted({_batch(profile, "opt") for profile in profiles})
        lines.append(
            f"dynamic_batching {{ preferred_batch_size: {preferred} "
            f"max_queue_delay_microseconds: {MAX_QUEUE_DELAY_US} }}"
        )
    types: dict[str, DType] = {tensor.name: tensor.dtype for tensor in first.tensors}
    lines += [_warm_up(profile, types, batch) for profile in profiles]
    return "\n".join(lines) + "\n"


def max_batch_size(manifest: Manifest) -> int:
    """The largest batch if the first dim of every tensor is named as the batch; else 0.

    0 tells Triton that shapes are complete, and turns its batching off, which is right for any
    engine. Batching is right only if each request has its own rows, so that a dim with another name
    (`tokens`, `boxes`) or without a known name is not a batch.
    """
    firsts = {tensor.dims[0] if tensor.dims else None for tensor in manifest.tensors}
    if len(firsts) != 1 or firsts.isdisjoint(BATCH_DIMS):
        return 0
    if any(tensor.shape[0] != -1 or tensor.is_shape_tensor for tensor in manifest.tensors):
        return 0
    for profile in manifest.spec.profiles:
        for bound in ("min", "opt", "max"):
            if len({getattr(shape, bound)[0] for shape in profile.shapes.values()}) != 1:
                return 0
    return max(_batch(profile, "max") for profile in manifest.spec.profiles)


def _batch(profile: ShapeProfile, bound: str) -> int:
    shape = next(iter(profile.shapes.values()))
    dims: tuple[int, ...] = getattr(shape, bound)
    return dims[0]


def _tensor(tensor: TensorInfo, skip: int) -> str:
    dims = ", ".join(str(dim) for dim in tensor.shape[skip:])
    shape = f"dims: [ {dims} ]"
    if not dims:  # a scalar for each sample: Triton requires at least one dim
        shape = "dims: [ 1 ] reshape { shape: [ ] }"
    if tensor.is_shape_tensor:
        shape += " is_shape_tensor: true"
    name = _quoted(tensor.name)
    return f"{tensor.role} {{ name: {name} data_type: TYPE_{DTYPES[tensor.dtype].triton} {shape} }}"


def _quoted(text: str) -> str:
    """A string in protobuf's text format. An ONNX tensor's name may have any character."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    plain = "".join(c if c >= " " and c != "\x7f" else f"\\{ord(c):03o}" for c in escaped)
    return f'"{plain}"'


def _warm_up(profile: ShapeProfile, types: dict[str, DType], batch: int) -> str:
    inputs: list[str] = []
    for name, shape in profile.shapes.items():
        dims = ", ".join(str(dim) for dim in shape.opt[1 if batch else 0 :]) or "1"
        inputs.append(
            f"inputs {{ key: {_quoted(name)} value {{ data_type: TYPE_{DTYPES[types[name]].triton} "
            f"dims: [ {dims} ] zero_data: true }} }}"
        )
    size = f"batch_size: {_batch(profile, 'opt')} " if batch else ""
    return f"model_warmup {{ name: {_quoted(profile.name)} {size}{' '.join(inputs)} }}"


def remove_old_plans(files: Iterable[RepositoryFile], folder: Path) -> None:
    """Removes the plans of these versions that their configs no longer name."""
    named = {folder / file.path for file in files if isinstance(file.content, BlobRef)}
    for version in {path.parent for path in named}:
        for path in version.glob("*.plan"):
            if path not in named:
                path.unlink()


@cache
def _images() -> dict[str, Any]:
    return tomllib.loads(
        (resources.files("enginefarm.pulling") / "triton_images.toml").read_text("utf-8")
    )


def tags(build: str) -> tuple[str, ...]:
    """The tags of `tritonserver` that the source lists with exactly that build, newest first: a
    plan runs only in its own build."""
    return tuple(_images()["tags"].get(build, ()))


def image_words(build: str) -> str:
    """A sentence on the images that contain that build of TensorRT, or that none is known."""
    needed = f"the image has to have TensorRT {build}"
    source = f"{_images()['source']}, {_images()['date']}"
    found = tags(build)
    if not found:
        return (
            f"{needed}. No image with it is known ({source} lists none). NVIDIA's "
            "Frameworks Support Matrix lists the build of each tritonserver:YY.MM-py3 image; "
            "`dpkg -l 'libnvinfer*'` in the image shows it"
        )
    return (
        f"{needed}: tritonserver:{found[0]} has it ({source}"
        + (f"; so have {', '.join(found[1:])}" if found[1:] else "")
        + "). The source does not say whether these images load plans: "
        f"`ls {BACKEND}` in the image shows it. It does not list the YY.MM-py3 images"
    )
