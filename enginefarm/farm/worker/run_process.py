"""`python -m enginefarm.farm.worker.run_process`: one flow run on a worker. Dies with its worker.

Prefect's own command outlives a killed worker: nobody could cancel it, and the next worker would
start a second job on the same GPU.

The worker's zygote (zygote.py), which has imported everything, forks the run itself. This process
represents it: it forwards signals and exits with the run's status. Without a zygote it runs the
flow itself, after a second of imports.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import struct
import sys
from importlib import import_module
from typing import Any

from enginefarm.child.lifeline import die_with_parent

SOCKET = "ENGINEFARM_RUN_SOCKET"
"""Where the worker's zygote listens."""

LENGTH = struct.Struct("!I")
STATUS = struct.Struct("!i")
"""An exit status; negative for a signal."""

FORKED, REFUSED = b"f", b"r"

PATIENCE_S = 20
"""How long an answer of the zygote is waited for, in seconds."""

LOST = 137
"""The exit status when the zygote was killed, and its runs with it."""

FLOWS = (
    "flows.benchmark_engine",
    "flows.build_engine",
    "flows.build_model",
    "flows.nightly_rebuild",
    "flows.promote",
)


def import_flows() -> None:
    """Imports our flows before Prefect looks for them. It looks in the working folder first, which
    may have an unrelated folder called `flows`."""
    for name in FLOWS:
        import_module(name)


def main() -> None:
    die_with_parent(os.getppid())
    run = _ask_zygote()
    if run is None:
        engine()
    else:
        _follow(run)


def engine() -> None:
    """Prefect's own way to run a flow run, in this process."""
    import_flows()
    sys.modules.pop("prefect.engine", None)  # else runpy warns of what the zygote has imported
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)


def _ask_zygote() -> socket.socket | None:
    """The socket of a run that the zygote forked with our environment, folder and output; None
    without a zygote."""
    path = os.environ.get(SOCKET)
    if not path:
        return None
    line = socket.socket(socket.AF_UNIX)
    line.settimeout(PATIENCE_S)
    try:
        line.connect(path)
        folder = os.getcwd()  # noqa: PTH109 - pathlib would cost as much as all the rest
        body = json.dumps({"environment": dict(os.environ), "folder": folder}).encode()
        socket.send_fds(line, [LENGTH.pack(len(body))], [0, 1, 2])
        line.sendall(body)
        if line.recv(1) == FORKED:
            line.settimeout(None)
            return line
    except OSError:
        pass
    line.close()
    return None


def _follow(run: socket.socket) -> None:
    def pass_on(number: int, _: Any) -> None:
        run.send(bytes([number]))

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    answer = run.recv(STATUS.size, socket.MSG_WAITALL)
    status = STATUS.unpack(answer)[0] if len(answer) == STATUS.size else LOST
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    main()
