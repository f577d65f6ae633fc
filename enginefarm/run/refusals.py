"""What a native refusal means, read from the words of TensorRT, CUDA and the loader.

One table for building and for running: which class the error has, why, and what to do. The
words were recorded from the real libraries (tests/unit/run/data/native_words.toml says from
which).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from enginefarm.errors import (
    BuildError,
    BuildOutOfMemory,
    DeviceOutOfMemory,
    DriverTooOld,
    EnginefarmError,
    EngineRunError,
    HostError,
    OtherBuild,
    OtherGpu,
    PlanDamaged,
    PluginMissing,
)


class Cause(NamedTuple):
    """What the words say, and what they mean. Groups of the pattern may stand in why and fix."""

    words: re.Pattern[str]
    building: type[EnginefarmError]
    running: type[EnginefarmError]
    why: str
    fix: str


def _says(words: str) -> re.Pattern[str]:
    return re.compile(words, re.IGNORECASE)


CAUSES: tuple[Cause, ...] = (
    Cause(
        _says(r"Unable to load library:? ?'?(?P<library>[^\s:']+)"),
        HostError,
        HostError,
        "TensorRT's library {library} is missing, or cannot be loaded",
        "install all of this TensorRT release, with the builder resource of this GPU, so that "
        "{library} is next to libnvinfer or on LD_LIBRARY_PATH",
    ),
    Cause(
        _says(
            r"(?P<library>[^\s:/]+\.so[.\d]*): (?:cannot open shared object|file too short|"
            r"invalid ELF header|undefined symbol|ELF load command|wrong ELF class)"
        ),
        HostError,
        HostError,
        "the shared library {library} is missing, or cannot be loaded",
        "install the package that has {library}, in the version that the bindings are for, or "
        "name its folder in LD_LIBRARY_PATH",
    ),
    Cause(
        _says(
            r"CUDA driver version is insufficient|CUDA initialization failure with error: 35\b|"
            r"cudaErrorInsufficientDriver"
        ),
        DriverTooOld,
        DriverTooOld,
        "the NVIDIA driver is missing, or older than the CUDA of this TensorRT needs",
        "update the driver, or use a TensorRT that was built for an older CUDA",
    ),
    Cause(
        _says(
            r"CUDA initialization failure|no CUDA-capable device|cudaErrorNoDevice|"
            r"Cuda failure: (?:initialization error|unknown error)|Unable to determine GPU"
        ),
        HostError,
        HostError,
        "CUDA does not start on this host",
        "see that `nvidia-smi` lists a GPU, and that CUDA_VISIBLE_DEVICES does not hide it",
    ),
    Cause(
        _says(r"Target GPU SM ?\d+ is not supported|no kernel image is available"),
        HostError,
        HostError,
        "this TensorRT release does not know this GPU's compute capability",
        "install a TensorRT release that supports this GPU",
    ),
    Cause(
        _says(
            r"incompatible device|not compatible with this hardware-compatible|"
            r"different compute capability|compute capability"
        ),
        BuildError,
        OtherGpu,
        "it was built for another GPU",
        "pull the engine of this GPU: enginefarm pull NAME --gpu auto",
    ),
    # Before plugins and versions: a failure of either kind may name the layer or the release.
    Cause(
        _says(r"Requested amount of memory|std::bad_alloc|Cannot allocate memory"),
        BuildOutOfMemory,
        HostError,
        "this host has too little free memory",
        "give the host or the container more memory",
    ),
    Cause(
        _says(
            r"out of memory|out_?of_?memory|Requested amount of GPU memory|insufficient memory|"
            r"cudaErrorMemoryAllocation"
        ),
        BuildOutOfMemory,
        DeviceOutOfMemory,
        "the GPU has too little free memory",
        "free the GPU, or build with smaller max shapes or a smaller builder.workspace_mib",
    ),
    Cause(
        _says(
            r"(?:cannot|could not|can't) find plugin|plugin\b[^.;]*\bnot found|"
            r"PluginCreator\w* not found|getPluginCreator could not find"
        ),
        BuildError,
        PluginMissing,
        "it needs a plugin that is not loaded",
        "pass the plugin library that the manifest lists",
    ),
    Cause(
        _says(r"magicTag|Magic tag does not match|EOF|too small to be a"),
        BuildError,
        PlanDamaged,
        "the file is not a plan of this library, or was cut short",
        "pull the engine again, and use the runtime that its manifest names",
    ),
    # Last: what is missing is often named with its version.
    Cause(
        _says(
            r"Version tag does not match|stdVersion|serialization version|"
            r"incompatible with the version|\bversion\b"
        ),
        BuildError,
        OtherBuild,
        "it was built by another build of the toolchain",
        "install the build that the manifest names, or pull an engine of the one installed",
    ),
)
"""The first that matches explains a refusal."""


class Refusal(NamedTuple):
    """Words about a network that a parser or a builder refuses. Groups of the pattern may stand in
    why."""

    words: re.Pattern[str]
    why: str
    fix: str


NETWORKS: tuple[Refusal, ...] = (
    Refusal(
        _says(r"(?P<node>[^\s(]+?)_OutputLayer: Must have inputs with equal ranks"),
        "the branches of node {node!r} (If) return tensors of different ranks, and which of them "
        "runs is not known when the engine is built",
        "make its condition a constant: it often compares a dim, which the recipe can fix to one "
        "size; or export the model without that If",
    ),
    Refusal(
        _says(r"graphScope.*kUNDEFINED"),
        "TensorRT cannot make out which branch of an If node some of the operators belong to",
        "export one model for each branch, without If nodes around whole networks",
    ),
    Refusal(
        _says(r"contains HW-specific datatypes: \w*b16"),
        "this GPU has no bfloat16, and the model has inputs, outputs or operators of it",
        "leave this GPU out, or give the model float32 or float16 inputs and outputs",
    ),
    Refusal(
        _says(r"contains HW-specific datatypes: (?P<types>\w+(?:, \w+)*)"),
        "this GPU does not compute with {types}, and the model has numbers of that type",
        "leave this GPU out, or start from the model in FP32: `precisions` quantize it",
    ),
    Refusal(
        _says(r"Quantized constant \((?P<name>.+?)\) is only allowed before DQ"),
        "TensorRT takes the int8 constant {name!r} for quantized floats",
        "compute with int32 in the model: Cast what is int8 to it, and back",
    ),
    Refusal(
        _says(r"Non-zero zero point is not supported"),
        "TensorRT quantizes symmetrically: every zero point has to be 0",
        "start from the model in FP32: the recipe's `precisions` quantize it; or quantize it "
        "symmetrically",
    ),
    Refusal(
        _says(r"in reshape op \d+: [^|]*\| (?P<node>\S+)_Output\.\d+-\(i8"),
        "TensorRT does not reshape the quantized tensor {node!r}, such as an input of an LSTM",
        "start from the model in FP32: the recipe's `precisions` quantize it; or take the Q/DQ "
        "nodes in front of LSTM and GRU nodes out",
    ),
    Refusal(
        _says(r"no tactics to implement the operation within workspace"),
        "an operator needs more memory for its work than `builder.workspace_mib` allows",
        "write a larger number there, or leave it out",
    ),
    Refusal(
        _says(r"decompose_composite_ops.*Attention operation"),
        "there is no kernel for operator Attention with these sizes and types",
        "export the model at opset 20 (`export.opset: 20`), which writes attention as MatMul and "
        "Softmax",
    ),
)
"""What a builder's words about a network mean. The first that matches explains the refusal."""


def cause_of(said: str) -> Cause | None:
    """The first cause whose words are there, with the names from those words in why and fix."""
    for cause in CAUSES:
        if found := cause.words.search(said):
            named = {name: value or "" for name, value in found.groupdict().items()}
            return cause._replace(why=cause.why.format(**named), fix=cause.fix.format(**named))
    return None


def refusal_of(said: str) -> Refusal | None:
    """The first refusal of a network whose words are there, with the names from them in `why`."""
    for known in NETWORKS:
        if words := known.words.search(said):
            return known._replace(why=known.why.format_map(words.groupdict()))
    return None


def refused(plan: Path, what: str, device_name: str, said: str) -> EnginefarmError:
    """The error of a plan that does not load or run, with the runtime's words and what they
    mean. Raised by the caller."""
    found = cause_of(said)
    if found is None:
        return EngineRunError(
            f"{plan.name} {what} on {device_name}",
            why=said,
            fix="pull the engine again; if that does not help, rebuild it",
        )
    return found.running(
        f"{plan.name} {what} on {device_name}",
        why=f"{found.why}; {said}",
        fix=found.fix,
    )


def not_built(who: str, said: str, *, refusal: str, fix: str) -> EnginefarmError:
    """The error of a build by `who` that fails, in the same way.

    refusal, fix: for causes that the table does not know, or knows of plans alone."""
    if known := refusal_of(said):
        return BuildError(f"{who} {refusal}", why=f"{known.why}; {said}", fix=known.fix)
    found = cause_of(said)
    if found is None or found.building is BuildError:
        return BuildError(f"{who} {refusal}", why=said, fix=fix)
    does = "ran out of memory" if found.building is BuildOutOfMemory else "made no plan"
    return found.building(f"{who} {does}", why=f"{found.why}; {said}", fix=found.fix)


def not_started(what: str, said: str) -> HostError:
    """The error of a library that does not start. It is the host's, whatever the words."""
    found = cause_of(said)
    if found is None or not issubclass(found.building, (HostError, BuildOutOfMemory)):
        return HostError(what, why=said, fix="see that `nvidia-smi` works on this host")
    kind = found.building if issubclass(found.building, HostError) else HostError
    return kind(what, why=f"{found.why}; {said}", fix=found.fix)
