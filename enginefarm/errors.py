"""Every error enginefarm raises on purpose.

EnginefarmError                    1
├── RecipeError                   10  the recipe says something that cannot be done
├── GpuError                      11  unknown GPU, or a precision that the GPU lacks
├── SourceError                   12  the model cannot be loaded (file, checkpoint, callable)
│   └── UnsafeCheckpointError     13  a checkpoint that would execute code
├── ExportError                   14  PyTorch -> ONNX failed, or the ONNX is not valid
├── SlimError                     15  OnnxSlim failed, or changed the numbers
├── PrecisionError                16  the cast or the quantizer failed
├── CalibrationError              17  calibration data is missing, empty, or of the wrong shape
├── ModelError                    18  the model returns different numbers each time, or NaN in FP32
├── BuildError                    20  the builder refused the network
│   ├── ParseError                21  the ONNX parser refused a node
│   ├── BuildCrashed              22  the builder process died (signal)
│   ├── BuildTimeout              23  wall-clock limit
│   ├── BuildOutOfMemory          24  memory limit
│   └── BuildCancelled            25
├── ToolchainError                26  a toolchain is not installed, or lacks what was asked for
├── AccuracyError                 30  over the accuracy budget: not published
├── StoreError                    40  the store answered with an error
│   ├── StoreUnavailable          41  down, unreachable, throttling (transient)
│   ├── StoreDenied               42  wrong or missing credentials
│   ├── StoreMissing              43  no such bucket or object
│   ├── CorruptBlob               44  bytes do not match their digest
│   ├── StoreConflict             45  somebody else wrote first
│   └── NewerVersion              47  a document that a newer enginefarm wrote
├── DiskFull                      46
├── NoEngineFits                  50  pull found nothing that can run on this host
├── SignatureRejected             51  unsigned, or signed by a key that is not trusted
├── GateError                     55  promotion refused by a gate
├── TritonError                   56  Triton is unreachable, not in explicit mode, or lacks a model
├── HostError                     60  no driver, no GPU, wrong GPU
│   └── DriverTooOld              61
├── EngineRunError                62  an engine could not be loaded or run on this GPU
│   ├── PlanDamaged               63  the file is not a plan, or was cut short
│   ├── OtherBuild                64  the plan is of another build of the toolchain
│   ├── OtherGpu                  65  the plan is for another compute capability
│   ├── PluginMissing             66  the plan needs a plugin that is not loaded
│   └── DeviceOutOfMemory         67  the GPU has too little free memory
├── FarmError                     70  server, work pool, worker or deployment
│   └── WorkerMismatch            71  the worker's GPU is not the one it was labeled with
└── UsageError                     2  the command line

The number is the exit code of the command line. An error says what is wrong, why,
and what to do next; `transient` errors are worth a retry, all others never are.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from pathlib import Path
from typing import ClassVar

LONGEST_LINE, KEPT = 2000, 1900
"""Characters of a line of an error, and of one that is cut."""


class EnginefarmError(Exception):
    """Base of every deliberate error.

    what: one line that names the field, file, tensor, node or GPU.
    why:  the cause, where it is known.
    fix:  what the reader can do next.
    """

    exit_code: ClassVar[int] = 1
    transient: ClassVar[bool] = False

    def __init_subclass__(cls, code: int | None = None) -> None:
        super().__init_subclass__()
        if code is not None:
            cls.exit_code = code

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        what = _readable(what)
        super().__init__(what)
        self.what = what
        self.why = _readable(why)
        self.fix = _readable(fix)

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)

    def fields(self) -> dict[str, str]:
        """What another process writes; `of_fields` makes it an error again."""
        return {"kind": type(self).__name__, "what": self.what, "why": self.why, "fix": self.fix}

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross processes (Prefect). Exception's own pickling calls __init__ with what
        # super().__init__ was given, which subclasses with other arguments do not survive.
        return (_rebuilt, (type(self), self.args), self.__dict__)


def _readable(text: str) -> str:
    """The text with its long lines cut: a file may have names of megabytes."""
    if len(text) <= LONGEST_LINE:
        return text
    lines = text.split("\n")
    return "\n".join(
        line if len(line) <= LONGEST_LINE else f"{line[:KEPT]}… ({len(line) - KEPT:,} more)"
        for line in lines
    )


def _rebuilt(kind: type[EnginefarmError], args: tuple[object, ...]) -> EnginefarmError:
    return kind.__new__(kind, *args)


class UsageError(EnginefarmError, code=2): ...


class RecipeError(EnginefarmError, code=10): ...


class GpuError(EnginefarmError, code=11): ...


class SourceError(EnginefarmError, code=12): ...


class UnsafeCheckpointError(SourceError, code=13): ...


class ExportError(EnginefarmError, code=14): ...


class SlimError(EnginefarmError, code=15): ...


class PrecisionError(EnginefarmError, code=16): ...


class CalibrationError(EnginefarmError, code=17): ...


class ModelError(EnginefarmError, code=18): ...


class BuildError(EnginefarmError, code=20): ...


class ParseError(BuildError, code=21): ...


class BuildCrashed(BuildError, code=22): ...


class BuildTimeout(BuildError, code=23): ...


class BuildOutOfMemory(BuildError, code=24): ...


class BuildCancelled(BuildError, code=25): ...


class ToolchainError(EnginefarmError, code=26): ...


class AccuracyError(EnginefarmError, code=30): ...


class StoreError(EnginefarmError, code=40): ...


class StoreUnavailable(StoreError, code=41):
    transient = True


class StoreDenied(StoreError, code=42): ...


class StoreMissing(StoreError, code=43): ...


class CorruptBlob(StoreError, code=44): ...


class StoreConflict(StoreError, code=45): ...


class NewerVersion(StoreError, code=47): ...


class DiskFull(EnginefarmError, code=46): ...


NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def disk_full(where: Path, why: str) -> DiskFull:
    """The error when a disk is too full to write a file or folder."""
    folder = where if where.is_dir() else where.parent
    return DiskFull(
        f"disk: the folder {folder} has no room"
        + (f" to write {where}" if where != folder else ""),
        why=why,
        fix="free space there (enginefarm cache prune), or choose another folder (--dest, "
        "ENGINEFARM_CACHE, TMPDIR)",
    )


class NoEngineFits(EnginefarmError, code=50): ...


class SignatureRejected(EnginefarmError, code=51): ...


class GateError(EnginefarmError, code=55): ...


class TritonError(EnginefarmError, code=56): ...


class HostError(EnginefarmError, code=60): ...


class DriverTooOld(HostError, code=61): ...


class EngineRunError(EnginefarmError, code=62): ...


class PlanDamaged(EngineRunError, code=63): ...


class OtherBuild(EngineRunError, code=64): ...


class OtherGpu(EngineRunError, code=65): ...


class PluginMissing(EngineRunError, code=66): ...


class DeviceOutOfMemory(EngineRunError, code=67): ...


class FarmError(EnginefarmError, code=70): ...


class WorkerMismatch(FarmError, code=71): ...


COMMAND: ContextVar[str] = ContextVar("command", default="")
"""The command that the user ran; empty in a program that imports enginefarm."""


@contextmanager
def running(command: str) -> Generator[None]:
    """Errors in the block name this command."""
    outside = COMMAND.set(command)
    try:
        yield
    finally:
        COMMAND.reset(outside)


def command(usual: str) -> str:
    """The first word of errors that several commands have in common: the command that the user ran,
    or else `usual`, the one that does just this."""
    return COMMAND.get() or usual


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """A line for `fix` that suggests the known name most similar to the given one; else empty."""
    by_folded = {name.casefold(): name for name in known}
    close = get_close_matches(given.strip().casefold(), list(by_folded), n=1)
    return f"did you mean {by_folded[close[0]]}?" if close else ""


def one_line(error: BaseException | str, limit: int = 500) -> str:
    """An error's text without color codes and line breaks.

    A long one loses its middle: ONNX Runtime names the tensor at the end.
    """
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(error))
    text = " ".join(text.split())
    if len(text) <= limit:
        return text
    end = limit // 3
    return f"{text[: limit - end - 1]}…{text[-end:]}"
