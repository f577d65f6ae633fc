"""TensorRT 10.x and 11.x: builds on the GPU that the engine is for, tactics timed on it.

Networks are strongly typed on both: the graph says every precision. The API contract test
holds this file to the real bindings of both.
"""

from __future__ import annotations

import json
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from enginefarm.child.call import Child, Limits
from enginefarm.documents.spec import BuildSpec, GpuTarget, ToolchainId
from enginefarm.documents.versions import AMPERE, version_tuple
from enginefarm.errors import BuildCancelled, BuildError, EnginefarmError, HostError, ToolchainError
from enginefarm.host.detect import first_gpu
from enginefarm.names import PrecisionName
from enginefarm.progress import report
from enginefarm.run.refusals import cause_of
from enginefarm.run.trt import Messages, create, make_logger, started
from enginefarm.toolchains import (
    BuildOutput,
    BuildRequest,
    builder_api,
    built_here,
    installed_build,
    parsing,
)

NAME = "tensorrt"
MODULES = ("tensorrt", "tensorrt_bindings")
CUDA_MAJORS = ("13", "12")
COMBINING_S = 300

TACTIC_SOURCES: dict[int, frozenset[str]] = {
    10: frozenset({"CUBLAS", "CUBLAS_LT", "CUDNN", "EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"}),
    11: frozenset({"EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"}),
}
"""Names of trt.TacticSource by major version."""

COMPATIBILITY: dict[str, str] = {
    "none": "NONE",
    "same_compute_capability": "SAME_COMPUTE_CAPABILITY",
    "ampere_plus": "AMPERE_PLUS",
}
"""BuilderOptions.compatibility -> trt.HardwareCompatibilityLevel."""


def major(build: str) -> int:
    return int(build.partition(".")[0])


def require_ampere(spec: BuildSpec) -> None:
    """Raises: ToolchainError where a plan for Ampere and newer is built on an older GPU."""
    older = version_tuple(spec.gpu.compute_capability) < AMPERE
    if spec.builder.compatibility == "ampere_plus" and older:
        raise ToolchainError(
            f"builder.compatibility: {spec.gpu.label} is older than Ampere",
            fix="use `none`, or build on an Ampere GPU",
        )


class TensorRT:
    """Builds through the Builder API of the installed `tensorrt`."""

    name = NAME
    cross = False

    def identity(self) -> ToolchainId:
        for cuda in CUDA_MAJORS:
            build = installed_build(NAME, f"tensorrt-cu{cuda}-libs", f"tensorrt-cu{cuda}-bindings")
            if build is not None:
                return built_here(NAME, build, cuda)
        raise ToolchainError(
            f"toolchain {NAME}: TensorRT is not installed", fix="pip install 'enginefarm[gpu]'"
        )

    def carries(self, gpu: GpuTarget, precision: PrecisionName) -> tuple[str, ...]:
        return ()

    def check(self, spec: BuildSpec) -> None:
        options, release = spec.builder, major(spec.toolchain.build)
        if release not in TACTIC_SOURCES:
            raise ToolchainError(
                f"toolchain {NAME}: version {spec.toolchain.build} is not supported",
                fix=f"use one of: {', '.join(f'{known}.x' for known in TACTIC_SOURCES)}",
            )
        unknown = sorted(set(options.tactic_sources or ()) - TACTIC_SOURCES[release])
        if unknown:
            raise ToolchainError(
                f"builder.tactic_sources: TensorRT {spec.toolchain.build} has no "
                f"{', '.join(unknown)}",
                fix=f"use names from: {', '.join(sorted(TACTIC_SOURCES[release]))}",
            )
        require_ampere(spec)

    def build(self, request: BuildRequest) -> BuildOutput:
        self.check(request.spec)
        require_gpu(request.spec)
        trt = load()
        began = time.monotonic()
        messages = Messages()
        logger, builder = started(trt, "TensorRT's builder", trt.Builder, request.plugins, messages)
        flags = network_flags(trt)
        network = create("TensorRT's builder", builder.create_network, flags, messages=messages)
        parser = create(
            "TensorRT's ONNX parser", trt.OnnxParser, network, logger, messages=messages
        )
        parsing.parse_onnx(parser, network, request.onnx, messages, NAME)
        parsing.let_attention_decompose(trt, network)
        config = make_config(trt, builder, request)
        builder_api.add_profiles(builder, config, network, request.spec.profiles)
        cache_used = use_timing_cache(config, request.timing_cache, messages)
        monitor = builder_api.make_monitor(trt)
        config.progress_monitor = monitor
        plan = request.work_dir / "engine.plan"
        builder_api.write_plan(builder, network, config, plan, messages)
        return BuildOutput(
            plan=plan,
            tensors=builder_api.network_tensors(network, request.onnx),
            seconds=time.monotonic() - began,
            layers=write_layers(trt, logger, plan, request.work_dir / "layers.json", messages),
            timing_cache=save_timing_cache(config, request.work_dir / "timing.cache"),
            details={"layers": network.num_layers, "timing_cache_used": cache_used},
        )


def load() -> Any:
    """The bindings of the full TensorRT.

    Raises: ToolchainError when none is installed; HostError when they are there, and a
    library of theirs is missing or cannot be loaded.
    """
    cause = ""
    for name in MODULES:
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            cause = cause or str(error)
        except ImportError as error:
            cause = str(error)
    if found := cause_of(cause):
        raise HostError(f"toolchain {NAME}: {found.why}", why=cause, fix=found.fix)
    raise ToolchainError(
        f"toolchain {NAME}: it cannot be imported",
        why=cause,
        fix="pip install 'enginefarm[gpu]', on a host with an NVIDIA driver",
    )


def require_gpu(spec: BuildSpec) -> None:
    """A native build is for the GPU at hand.

    Raises: HostError when there is none, or another one.
    """
    found = first_gpu()
    if found is None:
        raise HostError(
            f"build {spec.label}: this host has no NVIDIA GPU",
            why=f"toolchain {spec.toolchain.name} times its tactics on the GPU itself",
            fix=f"run it on a worker labeled {spec.gpu.label}, or use toolchain tensorrt-rtx",
        )
    if found.compute_capability != spec.gpu.compute_capability:
        raise HostError(
            f"build {spec.label}: this host's GPU is {found.name} "
            f"(compute capability {found.compute_capability}), not "
            f"{spec.gpu.label} ({spec.gpu.compute_capability})",
            fix=f"run it on a worker labeled {spec.gpu.label}",
        )


def network_flags(trt: Any) -> int:
    """10: strongly typed by flag. 11: always so, and without a flag."""
    if major(trt.__version__) >= 11:
        return 0
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def make_config(trt: Any, builder: Any, request: BuildRequest) -> Any:
    """A builder config with every option of the spec, each read back.

    Raises: BuildError, naming the option that the builder did not keep.
    """
    options = request.spec.builder
    config = builder.create_builder_config()
    if config is None:
        raise HostError("TensorRT's builder returns no configuration", fix="see build.log")
    builder_api.set_common(trt, config, options)
    level = getattr(trt.HardwareCompatibilityLevel, COMPATIBILITY[options.compatibility])
    builder_api.set_checked(config, "hardware_compatibility_level", level, "builder.compatibility")
    # Layer names, precisions and tactics for the inspector; it changes no kernel.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.tactic_sources is not None:
        mask = sum(1 << int(getattr(trt.TacticSource, name)) for name in options.tactic_sources)
        if not config.set_tactic_sources(mask):
            raise BuildError("builder.tactic_sources: the builder refused them")
    for flag, wanted, option in (
        ("VERSION_COMPATIBLE", options.version_compatible, "builder.version_compatible"),
        ("REFIT", options.refit, "builder.refit"),
    ):
        if wanted:
            builder_api.set_flag(trt, config, flag, option)
    if request.plugins and options.version_compatible:
        config.plugins_to_serialize = [str(library) for library in request.plugins]
    return config


def use_timing_cache(config: Any, path: Path | None, messages: Messages) -> bool:
    """Loads a timing cache, or starts an empty one; False when there was none, or it is of
    another device or version (TensorRT decides: mismatches are never ignored)."""
    if path is not None and path.is_file():
        cache = read_timing_cache(config, path.read_bytes(), messages)
        if cache is not None and config.set_timing_cache(cache, False):
            return True
        report("build", 0, None, "timing cache of another device or version: not used")
    config.set_timing_cache(config.create_timing_cache(b""), False)
    return False


def read_timing_cache(config: Any, data: bytes, messages: Messages) -> Any:
    """The cache of these bytes; None when TensorRT does not take them."""
    before = len(messages.errors)
    cache = config.create_timing_cache(data)
    # 8.6 returns an empty cache for bytes that it cannot read, and only its log says so.
    refused = messages.errors[before:]
    del messages.errors[before:]  # no cause of what may fail later
    return None if refused else cache


def save_timing_cache(config: Any, dest: Path) -> Path | None:
    cache = config.get_timing_cache()
    if cache is None:
        return None
    dest.write_bytes(memoryview(cache.serialize()))
    return dest


def write_layers(trt: Any, logger: Any, plan: Path, dest: Path, messages: Messages) -> Path | None:
    """The engine inspector's JSON: layers, precisions, tactics. None for a plan that cannot
    be loaded here."""
    runtime = create("TensorRT's runtime", trt.Runtime, logger, messages=messages)
    engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        return None
    inspector = engine.create_engine_inspector()
    dest.write_text(inspector.get_engine_information(trt.LayerInformationFormat.JSON), "utf-8")
    return dest


def combine(stored: bytes, fresh: bytes) -> bytes | None:
    """Two timing caches of one device in one, by TensorRT itself in a separate process; None when
    it refuses (another device or version), or fails."""
    with tempfile.TemporaryDirectory(prefix="enginefarm-") as name:
        folder = Path(name)
        first, second, out = folder / "stored", folder / "fresh", folder / "out"
        first.write_bytes(stored)
        second.write_bytes(fresh)
        child = Child("timing caches", error=BuildError, folder=folder, limits=Limits(COMBINING_S))
        try:
            child.call(f"{__name__}:combine_here", json.dumps([*map(str, (first, second, out))]))
        except BuildCancelled:
            raise
        except EnginefarmError:
            return None
        return out.read_bytes()


def combine_here(request: str) -> str:
    """The child's part. Raises: BuildError when TensorRT refuses them."""
    first, second, out = map(Path, json.loads(request))
    trt, messages = load(), Messages()
    builder = create(
        "TensorRT's builder", trt.Builder, make_logger(trt, messages), messages=messages
    )
    config = builder.create_builder_config()
    cache = read_timing_cache(config, first.read_bytes(), messages)
    other = read_timing_cache(config, second.read_bytes(), messages)
    if cache is None or other is None or not cache.combine(other, False):
        raise BuildError("TensorRT does not combine these timing caches")
    out.write_bytes(memoryview(cache.serialize()))
    return ""
