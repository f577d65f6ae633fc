"""Calls one function in a fresh process, so that every failure there is one error here.

Native libraries segfault, compilers report nothing for minutes, and a recipe's own code may
exit, loop or take all the memory. The child gets no credentials and cannot read those of
other processes; it has its own session, leaves no core, dies with its parent, and is
killed with all that it started when it is cancelled or over a limit.

What passes between the two is JSON, since the child may be hostile: a request file in,
progress lines through a pipe, and a result file or an error file out.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from enginefarm.child import output_files
from enginefarm.child.cancellation import CANCEL
from enginefarm.child.entry_point import ERROR, NO_ROOM, REQUEST, RESULT, room_in
from enginefarm.child.process import MemoryWatch, kill_group, mib, randomization_off, start
from enginefarm.documents import written_errors
from enginefarm.errors import BuildCancelled, EnginefarmError, disk_full
from enginefarm.progress import Progress, report
from enginefarm.settings import build_limits

Model = TypeVar("Model", bound=BaseModel)

POLL_S = 0.05
QUIET_S = 1.0
"""No progress for that long: shown as running, length unknown."""
LOG = "child.log"

LONGEST_LINE = 1 << 16
"""Bytes of a line of progress. A child may write as much as it likes."""


class Limits(NamedTuple):
    """Wall clock in seconds, and resident memory of the child with all that it starts.

    None: as much as a build may take, by `settings.build_limits`.
    """

    seconds: float | None = None
    memory_bytes: int | None = None


OF_A_BUILD = Limits()


class Kinds(NamedTuple):
    """The error for each way in which a child ends without an answer or its own error."""

    failed: type[EnginefarmError]
    crashed: type[EnginefarmError]
    too_long: type[EnginefarmError]
    too_large: type[EnginefarmError]


class Answer(NamedTuple):
    """text: what the function returned. peak_bytes: the most memory that was seen."""

    text: str
    peak_bytes: int


@dataclass(frozen=True)
class Child:
    """How children of one purpose run, and what is raised when they end badly.

    what: begins each error, as `build tiny/t4/fp16`. fix: ends that of a crash.
    error: one kind for every way to end badly, or a kind for each.
    folder: where it works, and its files and log stay; None: a temporary one.
    environment: variables in addition to the harmless ones of `child_environment`.
    fixed_addresses: without address-space randomization, where the machine allows it.
    beats: after a second without progress, it is reported as running.
    gives_way: others, whose results more has to wait for, get the processor first.
    """

    what: str
    error: type[EnginefarmError] | Kinds
    fix: str = ""
    limits: Limits = OF_A_BUILD
    folder: Path | None = None
    log_name: str = LOG
    environment: Mapping[str, str] | None = None
    fixed_addresses: bool = False
    beats: bool = False
    gives_way: bool = False
    progress: Progress = report
    cancel: threading.Event = CANCEL

    @property
    def kinds(self) -> Kinds:
        return self.error if isinstance(self.error, Kinds) else Kinds(*[self.error] * 4)

    def call(self, function: str, request: str) -> Answer:
        """`module:function` applied to the text `request`.

        Raises: the EnginefarmError that the function raised; `error` when the child died, went
        over a limit, or raised anything else; BuildCancelled.
        """
        with ExitStack() as stack:
            if self.folder is None:
                name = stack.enter_context(tempfile.TemporaryDirectory(prefix="enginefarm-"))
                folder = Path(name)
            else:
                folder = self.folder.resolve()
                folder.mkdir(parents=True, exist_ok=True)
            for name in (RESULT, ERROR):
                (folder / name).unlink(missing_ok=True)
            asked = {
                "request": request,
                "path": [part for part in sys.path if part],
                "gives_way": self.gives_way,
            }
            with room_in(folder):
                (folder / REQUEST).write_text(json.dumps(asked), "utf-8")
            watch = _Watch(self, folder / self.log_name)
            status = watch.run(function, folder)
            if (folder / ERROR).is_file():
                raise self._child_error(output_files.text(folder / ERROR))
            if status == NO_ROOM:
                raise disk_full(folder, os.strerror(errno.ENOSPC))
            if status != 0 or not (folder / RESULT).is_file():
                raise watch.exit_error(status)
            if (folder / RESULT).stat().st_size > output_files.MOST_BYTES:
                raise self.kinds.failed(f"{self.what}: the answer is too large", fix=self.fix)
            return Answer(output_files.text(folder / RESULT), watch.peak_bytes)

    def ask(self, function: str, request: BaseModel, answer: type[Model]) -> Model:
        """The same between models: the function takes and returns their JSON.

        Raises: as `call`; `error` for an answer that is not one."""
        text = self.call(function, request.model_dump_json()).text
        try:
            return answer.model_validate_json(text)
        except ValidationError as cause:
            raise self.kinds.failed(
                f"{self.what}: its process sent an answer that cannot be read",
                why=str(cause)[:300],
                fix=self.fix,
            ) from None

    def _child_error(self, text: str) -> EnginefarmError:
        """The error that the child wrote down."""
        try:
            fields = {name: str(value) for name, value in dict(json.loads(text)).items()}
        except (ValueError, TypeError):
            fields = {"why": text[:300]}
        if fields.get("what"):
            return written_errors.of_fields(fields, self.kinds.failed)
        memory = fields.get("kind") == MemoryError.__name__
        kind = self.kinds.too_large if memory else self.kinds.failed
        return kind(f"{self.what} failed", why=fields.get("why", ""), fix=self.fix)


class _Watch:
    """The child while it runs: passes its progress on, and kills it when it must end."""

    def __init__(self, child: Child, log: Path) -> None:
        self._child = child
        self._log = log
        self._build_s = build_limits().timeout_s
        self._limit_s = child.limits.seconds or self._build_s
        self._memory = MemoryWatch(child.limits.memory_bytes)
        self._last = ("", "")

    @property
    def peak_bytes(self) -> int:
        return self._memory.peak_bytes

    def run(self, function: str, folder: Path) -> int:
        """The exit status; negative for a signal."""
        read_end, write_end = os.pipe()
        with os.fdopen(read_end, "rb", buffering=0) as progress:
            try:
                with self._log.open("wb") as log:
                    process = start(
                        [
                            *(randomization_off() if self._child.fixed_addresses else ()),
                            *(sys.executable, "-P", "-m", "enginefarm.child.entry_point"),
                            *(function, str(folder), str(write_end), str(os.getpid())),
                        ],
                        folder,
                        stdout=log,
                        pass_fds=(write_end,),
                        environment=self._child.environment,
                        cwd=self._child.folder and folder,
                    )
            finally:
                os.close(write_end)
            try:
                self._follow(process, progress.fileno())
                return process.wait()
            finally:
                kill_group(process)

    def _follow(self, process: subprocess.Popen[bytes], fd: int) -> None:
        """Until the child has ended. Passes progress on; enforces the limits."""
        os.set_blocking(fd, False)
        started = heard = time.monotonic()
        pending, open_ = b"", True
        with selectors.DefaultSelector() as selector:
            selector.register(fd, selectors.EVENT_READ)
            while open_ or process.poll() is None:
                if not open_:
                    time.sleep(POLL_S)  # it closed its end, and is on its way out
                elif selector.select(POLL_S):
                    chunk = os.read(fd, 1 << 16)
                    open_ = bool(chunk)
                    *lines, pending = (pending + chunk).split(b"\n")
                    pending = pending[:LONGEST_LINE]
                    for line in lines:
                        self._relay(line)
                        heard = time.monotonic()
                elif process.poll() is not None:
                    break  # a stray grandchild may hold the pipe open
                now = time.monotonic()
                self._enforce(process.pid, now - started)
                if self._child.beats and now - heard > QUIET_S:
                    step, note = self._last
                    self._child.progress(step, now - started, None, note or "starting")
                    heard = now

    def _relay(self, line: bytes) -> None:
        try:
            step, done, total, note = json.loads(line)
            numbers = float(done), None if total is None else float(total)
        except (ValueError, TypeError, OverflowError, RecursionError):
            return  # a hostile child may write anything
        if all(map(math.isfinite, filter(None, numbers))):
            self._last = (str(step), str(note))
            self._child.progress(str(step), *numbers, str(note))

    def _enforce(self, pid: int, seconds: float) -> None:
        what, kinds = self._child.what, self._child.kinds
        if self._child.cancel.is_set():
            raise BuildCancelled(f"{what}: cancelled after {seconds:.1f} s")
        if seconds > self._limit_s:
            less = "give it less to do"
            raise kinds.too_long(
                f"{what}: it was killed, because it was still running after its limit of "
                f"{self._limit_s:g} s",
                why="; ".join(filter(None, (self._step(), self._last_words()))),
                fix=f"raise ENGINEFARM_BUILD_TIMEOUT_S, or {less}"
                if self._limit_s == self._build_s
                else less,
            )
        found = self._memory.too_much(pid)
        if found is not None:
            raise kinds.too_large(f"{what}: {found.words}", why=self._step(), fix=found.fix)

    def _step(self) -> str:
        """Where it was, by its last report."""
        step = ", ".join(filter(None, self._last))
        return f"its last step was: {step}" if step else ""

    def exit_error(self, status: int) -> EnginefarmError:
        """The error for a child that left neither an answer nor an error."""
        what, kinds = self._child.what, self._child.kinds
        if status == -signal.SIGKILL:
            return kinds.too_large(
                f"{what}: it was killed from outside (SIGKILL) when it used "
                f"{mib(self.peak_bytes)} of memory",
                why="the kernel does this when a machine or container is out of memory",
                fix="give the machine more memory, or run fewer at a time",
            )
        if status < 0:
            return kinds.crashed(
                f"{what}: its process was killed by {signal.Signals(-status).name}",
                why=self._last_words(),
                fix=self._child.fix or "a crash is a defect of the code or library that ran",
            )
        return kinds.failed(
            f"{what}: its process ended with status {status} and no result",
            why=self._last_words(),
            fix=self._child.fix or "the code that ran must not end its process",
        )

    def _last_words(self) -> str:
        """The last lines of the log that say what went wrong, or its last line."""
        lines = output_files.text(self._log, 20_000).splitlines()
        useful = [line.strip() for line in lines if _FATAL.match(line)][-3:]
        return "; ".join(useful or [line.strip() for line in lines if line.strip()][-1:])[:500]


_FATAL = re.compile(r"^(\[E\]|\[F\]|Fatal Python error|terminate called|\s+what\(\))")
