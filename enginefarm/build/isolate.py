"""Runs one build in a child process, so that whatever happens there is one error here.

The ONNX parser segfaults on some files, compilers report no progress for most of their
time, and only a kill stops them promptly. So every build gets a process group of its own,
an environment without credentials, a wall-clock limit, a memory limit, and address-space
randomisation off, without which plans differ from run to run.

The child is `builder_child.py`. What passes between the two: a request file in, progress
lines through a pipe, and a result file or an error file out.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from enginefarm import errors
from enginefarm.child.process import (
    child_environment,
    kill_group,
    randomisation_is_off,
    randomisation_off,
    resident_bytes,
)
from enginefarm.progress import report
from enginefarm.toolchains import BuildOutput, BuildRequest

LOG_NAME = "build.log"
POLL_S = 0.05
QUIET_S = 1.0
"""No progress from the builder for that long: shown as running, length unknown."""


def build(
    request: BuildRequest, *, toolchain: str, cancel: threading.Event | None = None
) -> BuildOutput:
    """One build of `toolchain` in a child process.

    Progress goes to `progress.report("build", …)`; the builder's log is
    `request.work_dir/build.log`, whatever the outcome. Setting `cancel` kills the child
    within a tenth of a second. A failed build leaves no plan behind.

    Raises: ParseError, BuildError, ToolchainError as the toolchain raised them;
    BuildCrashed (a signal), BuildTimeout, BuildOutOfMemory, BuildCancelled.
    """
    work_dir = request.work_dir.resolve()
    work_dir.mkdir(parents=True, exist_ok=True)
    (work_dir / "request.json").write_text(request.model_dump_json(), "utf-8")
    watch = _Watch(request, toolchain, cancel or threading.Event())
    try:
        code = watch.run(work_dir)
        return _outcome(code, work_dir, request, watch.peak_bytes)
    except BaseException:
        _drop_plans(work_dir)
        raise


class _Watch:
    """The child while it runs: reads its progress, and kills it when it must end."""

    def __init__(self, request: BuildRequest, toolchain: str, cancel: threading.Event) -> None:
        self._request = request
        self._toolchain = toolchain
        self._cancel = cancel
        self._label = f"{request.spec.label} ({toolchain})"
        self.peak_bytes = 0

    def run(self, work_dir: Path) -> int:
        """The child's exit status; negative for a signal."""
        read_end, write_end = os.pipe()
        try:
            with (work_dir / LOG_NAME).open("wb") as log:
                child = subprocess.Popen(
                    self._command(work_dir, write_end),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=work_dir,
                    env=child_environment(work_dir),
                    pass_fds=(write_end,),
                    start_new_session=True,
                )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        try:
            with os.fdopen(read_end, "rb", buffering=0) as progress:
                self._follow(child, progress.fileno())
            return child.wait()
        finally:
            kill_group(child)

    def _command(self, work_dir: Path, progress_fd: int) -> list[str]:
        return [
            *randomisation_off(),
            sys.executable,
            "-P",
            "-m",
            "enginefarm.build.child",
            self._toolchain,
            str(work_dir / "request.json"),
            str(progress_fd),
            str(os.getpid()),
        ]

    def _follow(self, child: subprocess.Popen[bytes], fd: int) -> None:
        """Until the child has ended. Relays progress; enforces the limits."""
        os.set_blocking(fd, False)
        started = heard = time.monotonic()
        phase, pending, open_ = "starting", b"", True
        with selectors.DefaultSelector() as selector:
            selector.register(fd, selectors.EVENT_READ)
            while open_ or child.poll() is None:
                if not open_:
                    time.sleep(POLL_S)  # it closed its end, and is on its way out
                elif selector.select(POLL_S):
                    chunk = os.read(fd, 1 << 16)
                    open_ = bool(chunk)
                    *lines, pending = (pending + chunk).split(b"\n")
                    for line in lines:
                        phase, heard = _relay(line, self._label), time.monotonic()
                elif child.poll() is not None:
                    break  # a stray grandchild may hold the pipe open
                now = time.monotonic()
                self._enforce(child, now - started)
                if now - heard > QUIET_S:
                    report("build", now - started, None, f"{self._label}: {phase}")
                    heard = now

    def _enforce(self, child: subprocess.Popen[bytes], seconds: float) -> None:
        if self._cancel.is_set():
            raise errors.BuildCancelled(f"build {self._label}: cancelled after {seconds:.1f} s")
        if seconds > self._request.timeout_s:
            raise errors.BuildTimeout(
                f"build {self._label}: still running after its limit of "
                f"{self._request.timeout_s:g} s, and killed",
                why=_cause(self._request.work_dir),
                fix="raise the build's time limit, or lower builder.optimization_level",
            )
        resident = resident_bytes(child.pid)
        self.peak_bytes = max(self.peak_bytes, resident)
        limit = self._request.memory_limit_bytes
        if limit is not None and resident > limit:
            raise errors.BuildOutOfMemory(
                f"build {self._label}: used {_mib(resident)} of memory, over its limit of "
                f"{_mib(limit)}, and was killed",
                fix="raise the memory limit (plan for 4× the weights), or build fewer at a time",
            )


def _relay(line: bytes, label: str) -> str:
    event = json.loads(line)
    report("build", event["done"], event["total"], f"{label}: {event['note']}")
    return str(event["note"])


def _outcome(code: int, work_dir: Path, request: BuildRequest, peak_bytes: int) -> BuildOutput:
    label = request.spec.label
    error = work_dir / "error.json"
    if error.is_file():
        raise errors.of_fields(json.loads(error.read_text("utf-8")), errors.BuildError)
    if code < 0:
        if -code == signal.SIGKILL:
            raise errors.BuildOutOfMemory(
                f"build {label}: killed from outside (SIGKILL), "
                f"when it used {_mib(peak_bytes)} of memory",
                why="the kernel kills so when a machine or container is out of memory",
                fix="give the machine more memory, or build fewer at a time",
            )
        name = signal.Signals(-code).name
        raise errors.BuildCrashed(
            f"build {label}: the builder died of {name}",
            why=_cause(work_dir),
            fix=f"run `onnx.checker.check_model` with full_check on {request.onnx.name}; "
            "a valid model that crashes the builder is a bug of the toolchain",
        )
    result = work_dir / "output.json"
    if code != 0 or not result.is_file():
        raise errors.BuildError(
            f"build {label}: the builder ended with status {code} and no result",
            why=_cause(work_dir),
            fix=f"read {work_dir / LOG_NAME}",
        )
    output = BuildOutput.model_validate_json(result.read_bytes())
    if not output.plan.is_file() or output.plan.stat().st_size == 0:
        raise errors.BuildError(f"build {label}: the builder said done and left no plan")
    peak = max(peak_bytes, output.peak_memory_bytes)
    details = output.details | {"address_space_randomisation": not randomisation_is_off()}
    return output.model_copy(
        update={"peak_memory_bytes": peak, "log": work_dir / LOG_NAME, "details": details}
    )


_FATAL = re.compile(r"^(\[E\]|\[F\]|Fatal Python error|terminate called|\s+what\(\))")


def _cause(work_dir: Path) -> str:
    """The last lines of the log that say what went wrong, or its last line."""
    log = work_dir / LOG_NAME
    if not log.is_file():
        return ""
    lines = log.read_bytes()[-20_000:].decode("utf-8", "replace").splitlines()
    useful = [line.strip() for line in lines if _FATAL.match(line)]
    return "; ".join(useful[-3:]) or next((line for line in reversed(lines) if line.strip()), "")


def _drop_plans(work_dir: Path) -> None:
    for name in ("engine.plan", "output.json"):
        (work_dir / name).unlink(missing_ok=True)


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.0f} MiB"
