"""A process of the worker that has imported what every run needs, and forks one for each.

    python -m enginefarm.farm.worker.zygote

Importing Prefect takes over a second of CPU; a fork takes a hundredth of that. The zygote starts
no thread, opens no connection, and imports neither torch nor CUDA. The worker sees each run as a
`run_process`: when that process ends, its forked run is killed. When the zygote dies, its runs die
too, and `running` starts another zygote.
"""

from __future__ import annotations

import gc
import json
import os
import selectors
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
from types import FrameType

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
        line.settimeout(READ_S)
        head, self.streams, _, _ = socket.recv_fds(line, LENGTH.size, STDIO)
        try:
            (size,) = LENGTH.unpack(head)
            body = json.loads(_receive(line, size))
            self.environment: dict[str, str] = body["environment"]
            self.folder: str = body["folder"]
            if len(self.streams) != STDIO:
                raise ValueError("no standard streams")
        except BaseException:
            self.close()
            raise

    def settings(self) -> dict[str, str]:
        return _settings(self.environment)

    def close(self) -> None:
        for descriptor in self.streams:
            os.close(descriptor)

    def become(self, zygote_pid: int) -> None:
        """Turns this process, which was just forked, into the requested run."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        die_with_parent(zygote_pid)
        os.setpgid(0, 0)  # signals of a terminal come by run_process, and once
        for number, descriptor in enumerate(self.streams):
            os.dup2(descriptor, number)
        self.close()
        os.environ.clear()
        os.environ.update(self.environment)
        os.chdir(self.folder)


def _receive(line: socket.socket, size: int) -> bytes:
    parts: list[bytes] = []
    while size > 0:
        part = line.recv(size)
        if not part:
            raise ValueError("it broke off")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _settings(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(RUN_PREFIX)}


class Zygote:
    """Accepts requests, forks, forwards signals and reports exit statuses, all in one thread."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._settings = _settings(os.environ)
        self._runs: dict[socket.socket, int] = {}
        self._selector = selectors.DefaultSelector()
        self._ended, wakeup = socket.socketpair()
        for end in (self._ended, wakeup):
            end.setblocking(False)
        self._wakeup = wakeup
        signal.signal(signal.SIGCHLD, _ignore)
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        for source in (listener, self._ended):
            self._selector.register(source, selectors.EVENT_READ)

    def serve(self) -> Request:
        """Never returns in the zygote; in a forked process it returns the request."""
        while True:
            for key, _ in self._selector.select():
                source = key.fileobj
                assert isinstance(source, socket.socket)
                if source is self._listener:
                    request = self._take()
                    if request is not None:
                        return request
                elif source is self._ended:
                    self._reap()
                elif source in self._runs:
                    self._pass_on(source)

    def _take(self) -> Request | None:
        line, _ = self._listener.accept()
        try:
            request = Request(line)
        except (OSError, ValueError, KeyError) as error:
            print(f"zygote: this is not a request: {error}", file=sys.stderr, flush=True)
            line.close()
            return None
        pid = self._forked() if self._same_settings(request) else None
        if pid == 0:
            line.close()
            return request
        request.close()
        if pid is not None:
            self._runs[line] = pid
            self._selector.register(line, selectors.EVENT_READ)
        # Should it be gone already, its end is read next, and kills the run.
        with suppress(OSError):
            line.sendall(REFUSED if pid is None else FORKED)
        if pid is None:
            line.close()
        return None

    def _same_settings(self, request: Request) -> bool:
        mine, theirs = self._settings, request.settings()
        names = sorted(name for name in mine | theirs if mine.get(name) != theirs.get(name))
        if names:
            print(f"zygote: other settings: {', '.join(names)}", file=sys.stderr, flush=True)
        return not names

    def _forked(self) -> int | None:
        """The process id; 0 in the new process; None when the system cannot fork."""
        try:
            pid = os.fork()
        except OSError:
            return None
        if pid == 0:
            self._selector.close()
            for source in (self._listener, self._ended, self._wakeup, *self._runs):
                source.close()
        return pid

    def _pass_on(self, line: socket.socket) -> None:
        """Forwards a signal to the run, or kills the run when its `run_process` has ended."""
        try:
            numbers = line.recv(16)
        except OSError:
            numbers = b""
        for number in numbers or [signal.SIGKILL]:
            with suppress(ProcessLookupError):
                os.kill(self._runs[line], number)
        if not numbers:
            self._selector.unregister(line)

    def _reap(self) -> None:
        with suppress(BlockingIOError):
            self._ended.recv(4096)
        for line, pid in list(self._runs.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            del self._runs[line]
            with suppress(KeyError):
                self._selector.unregister(line)
            with suppress(OSError):
                line.sendall(STATUS.pack(os.waitstatus_to_exitcode(status)))
            line.close()


def _ignore(number: int, frame: FrameType | None) -> None:
    """Does nothing: only a signal with a handler writes to the wakeup descriptor."""


def preload() -> None:
    """What every run imports, and what it reads to open the store."""
    for name in PRELOADED:
        import_module(name)
    from enginefarm.store import s3  # imports take time, and who asks must find us

    with suppress(UsageError):  # opening the store reports settings that cannot be used
        s3.connect("s3://none", credentials=Credentials("none", "none"))


def main() -> None:
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
    zygote_pid = os.getpid()
    Zygote(listener).serve().become(zygote_pid)
    engine()


if __name__ == "__main__":
    main()
