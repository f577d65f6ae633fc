"""trtexec: the same build as a command line that anyone can repeat.

`command` writes it, `parse_log` reads what comes back. The option names are
held to the lists in tests/unit/toolchains/data/trtexec_options_*.txt.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import time

from enginefarm.child.lifeline import die_with_parent_of
from enginefarm.documents.spec import BuildSpec, GpuTarget, ToolchainId
from enginefarm.errors import EnginefarmError, ParseError, ToolchainError
from enginefarm.names import PrecisionName
from enginefarm.run.refusals import not_built
from enginefarm.schema import Frozen
from enginefarm.toolchains import (
    BuildOutput,
    BuildRequest,
    built_here,
    built_plan,
    shapes_option,
)
from enginefarm.toolchains.onnx_io import require_graphs
from enginefarm.toolchains.tensorrt import TACTIC_SOURCES, TensorRT, major, require_gpu

NAME = "trtexec"
COMPATIBILITY = {
    "same_compute_capability": "sameComputeCapability",
    "ampere_plus": "ampere+",
}
BANNER = re.compile(r"\[TensorRT v(\d+)\](?: \[b(\d+)\])?")
CUDA_LINE = re.compile(r"CUDA(?: Runtime)? version:? (\d+)")


class Trtexec:
    """Builds by running `trtexec`, found on PATH or in TENSORRT_HOME/bin."""

    name = NAME
    cross = False

    def identity(self) -> ToolchainId:
        done = subprocess.run(
            [executable(), "--help"], capture_output=True, text=True, check=False, timeout=60
        )
        text = done.stdout + done.stderr
        build, cuda = version_of(text), CUDA_LINE.search(text)
        if build is None:
            raise ToolchainError(f"toolchain {NAME}: its banner names no version", why=text[:300])
        return built_here(NAME, build, cuda[1] if cuda else "unknown")

    def carries(self, gpu: GpuTarget, precision: PrecisionName) -> tuple[str, ...]:
        return ()

    def check(self, spec: BuildSpec) -> None:
        TensorRT().check(spec)

    def build(self, request: BuildRequest) -> BuildOutput:
        self.check(request.spec)
        require_gpu(request.spec)
        built_plan.require_bindings(NAME)
        arguments = command(request)
        started = time.monotonic()
        log = request.work_dir / "trtexec.log"
        if request.timing_cache is not None:
            # trtexec reads and writes one file: what it finds there it adds to.
            shutil.copyfile(request.timing_cache, request.work_dir / "timing.cache")
        with log.open("w") as stream:
            code = subprocess.run(
                arguments,
                stdout=stream,
                stderr=subprocess.STDOUT,
                check=False,
                preexec_fn=die_with_parent_of(),
            ).returncode
        text = log.read_text("utf-8", "replace")
        print(text)
        report = parse_log(text)
        plan = request.work_dir / "engine.plan"
        if code != 0 or not report.passed or not plan.is_file():
            raise failure(report, code)
        found = built_plan.contents(plan, request)
        require_graphs(found.tensors, request.onnx)
        built_plan.require_profiles(found, request.spec)
        layers, cache = request.work_dir / "layers.json", request.work_dir / "timing.cache"
        return BuildOutput(
            plan=plan,
            tensors=found.tensors,
            seconds=report.build_seconds or time.monotonic() - started,
            layers=layers if layers.is_file() else None,
            timing_cache=cache if cache.is_file() else None,
            command=shlex.join(arguments),
            details={"trtexec": report.model_dump(mode="json", exclude={"errors"})},
        )


def executable() -> str:
    """Raises: ToolchainError when there is no trtexec."""
    found = shutil.which(NAME) or shutil.which(NAME, path="/usr/src/tensorrt/bin")
    if found is None:
        raise ToolchainError(
            f"toolchain {NAME}: no trtexec on PATH or in /usr/src/tensorrt/bin",
            fix="install TensorRT's Debian or tar package; wheels do not have it",
        )
    return found


def command(request: BuildRequest, program: str | None = None) -> list[str]:
    """The command line of a request.

    10 and 11 differ in one word: strong typing is a flag in 10, and the only way in 11.
    """
    spec, options, folder = request.spec, request.spec.builder, request.work_dir
    line = [
        program or executable(),
        f"--onnx={request.onnx}",
        f"--saveEngine={folder / 'engine.plan'}",
        "--skipInference",
        "--noTF32",
        f"--builderOptimizationLevel={options.optimization_level}",
        "--profilingVerbosity=detailed",
        f"--exportLayerInfo={folder / 'layers.json'}",
        f"--timingCacheFile={folder / 'timing.cache'}",
    ]
    if major(spec.toolchain.build) < 11:
        line.append("--stronglyTyped")
    line += _profiles(spec)
    if options.workspace_mib is not None:
        line.append(f"--memPoolSize=workspace:{options.workspace_mib}M")
    if options.compatibility != "none":
        line.append(f"--hardwareCompatibilityLevel={COMPATIBILITY[options.compatibility]}")
    for wanted, option in (
        (options.version_compatible, "--versionCompatible"),
        (options.sparse_weights, "--sparsity=enable"),
    ):
        if wanted:
            line.append(option)
    if options.tactic_sources is not None:
        line.append(f"--tacticSources={_tactic_sources(spec)}")
    line += [f"--dynamicPlugins={library}" for library in request.plugins]
    return line


def _profiles(spec: BuildSpec) -> list[str]:
    line: list[str] = []
    for index, profile in enumerate(spec.profiles):
        if len(spec.profiles) > 1:
            line.append(f"--profile={index}")
        if profile.shapes:
            line += [
                f"--{point}Shapes={shapes_option(profile, point)}"
                for point in ("min", "opt", "max")
            ]
    return line


def _tactic_sources(spec: BuildSpec) -> str:
    wanted = set(spec.builder.tactic_sources or ())
    known = sorted(TACTIC_SOURCES[major(spec.toolchain.build)])
    return ",".join(f"{'+' if name in wanted else '-'}{name}" for name in known)


# --- what comes back ---------------------------------------------------------------------


class TrtexecReport(Frozen):
    """What a trtexec log says about a build. None: the log does not say."""

    passed: bool
    version: str | None = None
    build_seconds: float | None = None
    errors: tuple[str, ...] = ()


# Bounded: a log may hold anything, and 1e999 is not a number of seconds.
_BUILT = re.compile(
    r"Engine (?:built|generation completed) in "
    r"([-+]?\d{1,18}(?:\.\d{1,18})?(?:e[-+]?\d{1,2})?)(?![\d.e]) ?sec"
)
# The samples' own checks of CUDA print one line of this kind, and end the program.
_ERROR = re.compile(r"^(?:(?:\[[^\]]*\] )?\[[EF]\] (.*)|(Cuda failure.*))$")


def parse_log(text: str) -> TrtexecReport:
    """Any text becomes a report: what is not found is None."""
    found = (_ERROR.match(line.strip()) for line in text.splitlines())
    errors = ((line[1] or line[2]).strip() for line in found if line)
    built = _BUILT.search(text)
    return TrtexecReport(
        passed="&&&& PASSED TensorRT.trtexec" in text,
        version=version_of(text),
        build_seconds=float(built[1]) if built else None,
        errors=tuple(dict.fromkeys(errors)),
    )


def version_of(text: str) -> str | None:
    """`[TensorRT v101600] [b72]` -> 10.16.0.72. Before 10, `v8601` is 8.6.1."""
    found = BANNER.search(text)
    if found is None:
        return None
    digits = found[1]
    minor = -4 if len(digits) > 4 else -3
    parts = (digits[:minor] or "0", digits[minor:-2] or "0", digits[-2:])
    numbers = [str(int(part)) for part in parts]
    return ".".join([*numbers, found[2]] if found[2] else numbers)


def failure(report: TrtexecReport, code: int) -> EnginefarmError:
    """The error of a failed run, with the log's own cause."""
    cause = "; ".join(report.errors)
    if "While parsing node" in cause or "Failed to parse" in cause:
        return ParseError("trtexec cannot parse the model", why=cause)
    refusal = f"ended with status {code} and no plan"
    return not_built(NAME, cause, refusal=refusal, fix="read trtexec.log")
