"""Runs one function in a child process, so that a crash of native code is one error here.

ONNX Runtime 1.32 was seen to segfault on a valid FP16 graph (docs/decisions/0025). The
function takes a JSON text and gives one. The child gets no credentials, dies with its
parent, and is killed when the process is asked to stop.

    python -m enginefarm.child.call MODULE:FUNCTION FOLDER PARENT_PID
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from importlib import import_module
from pathlib import Path

from enginefarm import errors
from enginefarm.child.cancellation import CANCEL
from enginefarm.child.lifeline import die_with_parent
from enginefarm.child.process import child_environment
from enginefarm.errors import BuildCancelled, EnginefarmError

POLL_S = 0.1
REQUEST, RESULT, ERROR, LOG = "request.json", "result.json", "error.json", "log"


def call(function: str, request: str, *, error: type[EnginefarmError], what: str) -> str:
    """`module:function` applied to the JSON text `request`, in a child process.

    Raises: whatever error of ours the function raised; `error` when the child died or raised
    another; BuildCancelled when the process was asked to stop.
    """
    with tempfile.TemporaryDirectory(prefix="enginefarm-") as name:
        folder = Path(name)
        (folder / REQUEST).write_text(request, "utf-8")
        status = _run(function, folder, what)
        if (folder / RESULT).is_file() and status == 0:
            return (folder / RESULT).read_text("utf-8")
        if (folder / ERROR).is_file():
            raise errors.of_fields(json.loads((folder / ERROR).read_text("utf-8")), error)
        died = signal.Signals(-status).name if status < 0 else f"status {status}"
        raise error(
            f"{what}: the process that ran it died of {died}",
            why=_last_words(folder / LOG),
            fix="a valid graph that crashes ONNX Runtime is a defect of it; leave this "
            "precision out, or try another version",
        )


def _run(function: str, folder: Path, what: str) -> int:
    with (folder / LOG).open("wb") as log:
        child = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "enginefarm.child.call",
                function,
                str(folder),
                str(os.getpid()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=child_environment(folder),
            start_new_session=True,
        )
        try:
            while True:
                try:
                    return child.wait(POLL_S)
                except subprocess.TimeoutExpired:
                    if CANCEL.is_set():
                        raise BuildCancelled(f"{what}: cancelled") from None
        finally:
            child.kill()
            child.wait()


def _last_words(log: Path) -> str:
    lines = log.read_bytes()[-20_000:].decode("utf-8", "replace").splitlines()
    fatal = [line.strip() for line in lines if line.startswith(("Fatal", "terminate"))]
    return "; ".join(fatal or [line.strip() for line in lines if line.strip()][-1:])[:300]


def main(arguments: list[str]) -> int:
    function, folder, parent_pid = arguments[0], Path(arguments[1]), int(arguments[2])
    die_with_parent(parent_pid)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    module, _, name = function.partition(":")
    try:
        result = getattr(import_module(module), name)((folder / REQUEST).read_text("utf-8"))
    except Exception as cause:
        traceback.print_exc()
        if isinstance(cause, EnginefarmError):
            fields = cause.fields()
        else:
            why = f"{type(cause).__name__}: {cause}"
            fields = {"kind": "", "what": f"{function} failed", "why": why, "fix": ""}
        (folder / ERROR).write_text(json.dumps(fields), "utf-8")
        return 1
    (folder / RESULT).write_text(result, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
