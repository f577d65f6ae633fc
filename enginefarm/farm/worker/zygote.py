"""A process of the worker that has imported what every run needs, and forks one for each.

    python -m enginefarm.farm.worker.zygote

Python and Prefect's imports take over a second of CPU; a fork takes a hundredth of it. The
zygote starts no thread and opens no connection, and imports neither torch nor CUDA. A run
that it forks is led by a `run_process`, which the worker knows as the run: when that one
goes, the run is killed; when the zygote goes, the runs do, and `kept` starts another.
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
from enginefarm.farm.worker.run_process import (
    FLOWS,
    FORKED,
    LENGTH,
    REFUSED,
    SOCKET,
    STATUS,
    engine,
)

PRELOADED = (
    "prefect.flow_engine",
    "prefect._internal.metrics",
    "enginefarm.store.s3",
    *FLOWS,
)

A_RUNS_OWN = "PREFECT__"
"""Begins the variables that differ from run to run. Settings, which are read when Prefect is
imported, do not begin so: a run whose settings differ from the zygote's is refused."""

READ_S = 5.0
RESTART_S = 1.0
STDIO = 3


@contextmanager
def kept(environment: Mapping[str, str]) -> Generator[None]:
    """Keeps a zygote of this process while the block runs.

    environment: that of the runs, without what is a run's own. The variable that names the
    socket is set here, for this process too.
    """
    with tempfile.TemporaryDirectory(prefix="enginefarm-") as folder:
        os.environ[SOCKET] = str(Path(folder) / "runs")
        keeper = _Keeper({**environment, SOCKET: os.environ[SOCKET]})
        keeper.start()
        try:
            yield
        finally:
            keeper.stop()


class _Keeper(threading.Thread):
    """Starts it, and again when it dies. It dies with the thread that started it: this one."""

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
            self._process.wait()
            self._stopped.wait(RESTART_S)

    def stop(self) -> None:
        self._stopped.set()
        if self._process is not None:
            self._process.kill()
        self.join(RESTART_S)


class Request:
    """What a run is to be: its environment, its folder, its standard streams."""

    def __init__(self, line: socket.socket) -> None:
        line.settimeout(READ_S)
        head, self.streams, _, _ = socket.recv_fds(line, LENGTH.size, STDIO)
        try:
            (size,) = LENGTH.unpack(head)
            body = json.loads(_exactly(line, size))
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
        """Makes this process, just forked, the one that was asked for."""
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


def _exactly(line: socket.socket, size: int) -> bytes:
    parts: list[bytes] = []
    while size > 0:
        part = line.recv(size)
        if not part:
            raise ValueError("it broke off")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _settings(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(A_RUNS_OWN)}


class Zygote:
    """One thread: takes requests, forks, passes signals on, tells how each run ended."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._settings = _settings(os.environ)
        self._runs: dict[socket.socket, int] = {}
        self._selector = selectors.DefaultSelector()
        self._ended, wakeup = socket.socketpair()
        for end in (self._ended, wakeup):
            end.setblocking(False)
        self._wakeup = wakeup
        signal.signal(signal.SIGCHLD, _noted)
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        for source in (listener, self._ended):
            self._selector.register(source, selectors.EVENT_READ)

    def serve(self) -> Request:
        """For ever; returns only in a process that was forked, with what it is to be."""
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
        pid = self._forked() if self._alike(request) else None
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

    def _alike(self, request: Request) -> bool:
        mine, theirs = self._settings, request.settings()
        names = sorted(name for name in mine | theirs if mine.get(name) != theirs.get(name))
        if names:
            print(f"zygote: other settings: {', '.join(names)}", file=sys.stderr, flush=True)
        return not names

    def _forked(self) -> int | None:
        """0 in the new process; None when the machine has no room for one."""
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
        """A signal for the run; or the end of the one that leads it, which ends the run."""
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


def _noted(number: int, frame: FrameType | None) -> None:
    """The wakeup descriptor has it; a signal without a handler does not wake."""


def main() -> None:
    die_with_parent(os.getppid())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # a worker that drains still needs its runs
    path = Path(os.environ[SOCKET])
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)  # who comes while we import waits for less than its own imports take
    for name in PRELOADED:
        import_module(name)
    gc.collect()
    gc.freeze()
    zygote_pid = os.getpid()
    Zygote(listener).serve().become(zygote_pid)
    engine()


if __name__ == "__main__":
    main()
