"""A process of the worker that has imported what every run needs, and forks one for each.

    python -m enginefarm.farm.worker.zygote

Importing Prefect takes over a second of CPU; a fork takes a hundredth of that. The zygote starts
no thread, opens no connection, and imports neither torch nor CUDA. The worker sees each run as a
`run_process`, which a keeper answers: a fork of the zygote that forks the run, forwards signals to
it, and kills it when the `run_process` ends. When the zygote dies, its keepers and runs die too,
and `running` starts another zygote.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

from enginefarm.child import COLLECT
from enginefarm.child.lifeline import die_with_parent
from enginefarm.errors import UsageError
from enginefarm.farm.worker.run_process import (
    FLOWS,
    FORKED,
    LENGTH,
    REFUSED,
    SOCKET,
    STATUS,
    engine,
)
from enginefarm.store.client import Credentials

PRELOADED = (
    "encodings.idna",
    "anyio._backends._asyncio",
    "prefect.flow_engine",
    "prefect.task_engine",
    "prefect.utilities.visualization",
    "prefect._internal.metrics",
    "enginefarm.store.s3",
    "s3transfer.manager",
    *FLOWS,
)

RUN_PREFIX = "PREFECT__"
"""The prefix of variables that differ from run to run. All others are settings, which Prefect
reads when it is imported: a run whose settings differ from the zygote's is refused."""

READ_S = 5.0
RESTART_S = 1.0
STDIO = 3


@contextmanager
def running(environment: Mapping[str, str]) -> Generator[None]:
    """Keeps a zygote alive while the block runs.

    environment: that of the runs, without the variables of a single run. The variable that names
    the socket is set here, also for this process.
    """
    with tempfile.TemporaryDirectory(prefix="enginefarm-") as folder:
        os.environ[SOCKET] = str(Path(folder) / "runs")
        supervisor = _Supervisor({**environment, SOCKET: os.environ[SOCKET]})
        supervisor.start()
        try:
            yield
        finally:
            supervisor.stop()


class _Supervisor(threading.Thread):
    """Starts the zygote, and restarts it when it dies. The zygote dies with this thread."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        super().__init__(name="zygote", daemon=True)
        self._environment = environment
        self._stopped = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        while not self._stopped.is_set():
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "enginefarm.farm.worker.zygote"], env=self._environment
            )
            status = self._process.wait()
            if not self._stopped.wait(RESTART_S):
                print(f"zygote: ended with status {status}, and starts again", flush=True)

    def stop(self) -> None:
        self._stopped.set()
        if self._process is not None:
            self._process.kill()
        self.join(RESTART_S)


class Request:
    """A request for a run: its environment, its folder and its standard streams."""

    def __init__(self, line: socket.socket) -> None:
        """Raises: OSError, ValueError, KeyError for what is not a request."""
        line.settimeout(READ_S)
        head, self._streams, _, _ = socket.recv_fds(line, LENGTH.size, STDIO)
        (size,) = LENGTH.unpack(head)
        with line.makefile("rb") as stream:
            body = json.loads(stream.read(size))
        self.environment: dict[str, str] = body["environment"]
        self._folder: str = body["folder"]
        if len(self._streams) != STDIO:
            raise ValueError("it has no standard streams")
        line.settimeout(None)

    def become(self) -> None:
        """Turns this process, which was just forked, into the requested run."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setpgid(0, 0)  # signals of a terminal come by run_process, and once
        for number, descriptor in enumerate(self._streams):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.environ.clear()
        os.environ.update(self.environment)
        os.chdir(self._folder)


def _settings(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(RUN_PREFIX)}


def _has_other_settings(request: Request) -> bool:
    mine, theirs = _settings(os.environ), _settings(request.environment)
    names = sorted(name for name in mine | theirs if mine.get(name) != theirs.get(name))
    if names:
        print(f"zygote: other settings: {', '.join(names)}", file=sys.stderr, flush=True)
    return bool(names)


def serve(listener: socket.socket) -> None:
    """Forks a keeper for each request. It returns only in the process of a run."""
    zygote_pid = os.getpid()
    signal.signal(signal.SIGCHLD, _reap)
    while True:
        line, _ = listener.accept()
        with line:
            try:
                pid = os.fork()
            except OSError:  # `run_process` reads the end of its line, and runs the flow itself
                continue
            if pid == 0:
                listener.close()
                die_with_parent(zygote_pid)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                if _keep(line):
                    return
                os._exit(0)


def _reap(*_: object) -> None:
    """Nobody asks how keepers end; with each, what its run took of the processor is counted as
    taken by the zygote's children."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _keep(line: socket.socket) -> bool:
    """Forks the run, forwards its signals, and reports its exit status. Returns True in the run's
    own process; the run dies with its keeper."""
    try:
        request = Request(line)
    except (OSError, ValueError, KeyError) as error:
        print(f"zygote: this is not a request: {error}", file=sys.stderr, flush=True)
        return False
    if _has_other_settings(request):
        line.sendall(REFUSED)
        return False
    keeper_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        line.close()
        die_with_parent(keeper_pid)
        request.become()
        return True
    forwarding = threading.Thread(target=_forward, args=(line, pid), daemon=True)
    forwarding.start()
    with suppress(OSError):  # should `run_process` be gone already, `_forward` kills the run
        line.sendall(FORKED)
    # The run keeps its process id until nobody sends signals to it any more.
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    with suppress(OSError):
        line.shutdown(socket.SHUT_RD)
    forwarding.join()
    _, status = os.waitpid(pid, 0)
    with suppress(OSError):
        line.sendall(STATUS.pack(os.waitstatus_to_exitcode(status)))
    return False


def _forward(line: socket.socket, pid: int) -> None:
    """Forwards signals to the run, and kills it when its `run_process` has ended."""
    with suppress(ConnectionError):
        while numbers := line.recv(16):
            for number in numbers:
                os.kill(pid, number)
    os.kill(pid, signal.SIGKILL)


def preload() -> None:
    """What every run imports, and what it reads to open the store."""
    for name in PRELOADED:
        import_module(name)
    from enginefarm.store import s3  # imports take time, and who asks must find us

    with suppress(UsageError):  # opening the store reports settings that cannot be used
        s3.connect("s3://none", credentials=Credentials("none", "none"))


def main() -> None:
    gc.set_threshold(*COLLECT)
    die_with_parent(os.getppid())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # a worker that drains still needs its runs
    path = Path(os.environ[SOCKET])
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)  # who comes while we import waits for less than its own imports take
    preload()
    gc.collect()
    gc.freeze()
    serve(listener)
    engine()


if __name__ == "__main__":
    main()
