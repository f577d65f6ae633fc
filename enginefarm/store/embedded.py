"""The default store: a real S3 server (SeaweedFS) on a local folder, loopback only.

It is started once, shared by every process of the user, and left running, so that the next command
finds it. `stop(home)` ends it; the data stays.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

from filelock import FileLock

from enginefarm.errors import NO_SPACE, StoreError, StoreUnavailable, UsageError, disk_full
from enginefarm.settings import current
from enginefarm.store import inner_ports, weed
from enginefarm.store.client import Credentials
from enginefarm.store.disk import write_atomically
from enginefarm.store.weed import ports_of

BUCKET = "enginefarm"
PROBE = ".ready"
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 20

PORT_CHOICES = 5
"""Tries to start. A port cannot be reserved, so that another program may take it first."""

FATAL = re.compile(r"[EF]\d{4} ")
"""The beginning of an error's line in SeaweedFS's log."""

PORT_TAKEN = ("address already in use", "Port allocation failed")


class _PortTaken(StoreUnavailable):
    """Another program took one of the server's ports between our choice and its use."""


@dataclass(frozen=True)
class Server:
    home: Path
    pid: int
    port: int
    credentials: Credentials

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def home_of(url: str) -> Path:
    """The folder of `embedded:///folder`, or the default folder for an empty URL.

    Raises: UsageError without an absolute folder.
    """
    if not url:
        return default_home()
    folder = Path(url.partition("://")[2])
    if not folder.is_absolute():
        raise UsageError(
            "store: the URL of an embedded store does not contain an absolute folder",
            fix="write embedded:///FOLDER, or unset ENGINEFARM_STORE for "
            f"{default_home().as_posix()}",
        )
    return folder


def default_home() -> Path:
    """ENGINEFARM_HOME/store, else ~/.local/share/enginefarm/store."""
    return current().home / "store"


def running(home: Path) -> Server | None:
    """The server of that folder, if it is alive and answers."""
    server = _recorded(home)
    return server if server is not None and _exists(server) and _answers(server) else None


def start(home: Path) -> Server:
    """The server of that folder: the running one, or a new one. Processes may call it in parallel.

    Raises: StoreUnavailable when SeaweedFS is not installed or does not come up.
    """
    found = running(home)
    if found is not None:
        return found
    with _lock(home):
        found = running(home)
        if found is not None:
            return found
        hung = _recorded(home)
        if hung is not None:  # two servers on one folder would damage it
            _end(hung)
        for _ in range(PORT_CHOICES - 1):
            with suppress(_PortTaken):
                return _launch(home)
        return _launch(home)


def stop(home: Path) -> bool:
    """Ends the server cleanly; returns False if none was running. The data stays."""
    with _lock(home):
        server = _recorded(home)
        ended = server is not None and _end(server)
        (home / "server.json").unlink(missing_ok=True)
        return ended


def _recorded(home: Path) -> Server | None:
    """The server that was started last, which may have ended."""
    try:
        state = json.loads((home / "server.json").read_text("utf-8"))
        return Server(home, int(state["pid"]), int(state["port"]), inner_ports.credentials_of(home))
    except (OSError, ValueError, KeyError):
        return None


def _end(server: Server) -> bool:
    """Ends the process and waits for it; returns False if it had already ended."""
    if not _exists(server):
        return False
    os.kill(server.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while _exists(server):
        if time.monotonic() > deadline:
            os.kill(server.pid, signal.SIGKILL)
        time.sleep(0.05)
    return True


def _launch(home: Path) -> Server:
    data = home / "data"
    data.mkdir(exist_ok=True)
    data.chmod(0o700)  # others may be able to read the folder around it
    credentials = inner_ports.credentials_of(home)
    port, *others = ports_of(home)
    command = weed.command(data, port, others)
    for old in home.glob("weed.*"):  # SeaweedFS never deletes the three logs of a start
        old.unlink(missing_ok=True)
    log = home / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=weed.environment(home, credentials),
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            close_fds=True,
            umask=0o077,  # also for the sockets that it puts into /tmp
        )
    server = Server(home, process.pid, port, credentials)
    try:
        _await_ready(server, process, log)
        _prepare(server)
    except BaseException:
        process.kill()
        process.wait()
        raise
    state = json.dumps({"pid": server.pid, "port": port})
    write_atomically(home / "server.json", state.encode())
    return server


def _await_ready(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    direct = build_opener(ProxyHandler({}))
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            direct.open(f"{server.endpoint}/{BUCKET}", timeout=2).close()
        except HTTPError as answer:
            answer.close()
            if answer.code in (401, 403):
                return
        except (URLError, OSError):
            pass
        time.sleep(0.05)
    lines = log.read_text("utf-8", "replace").splitlines()
    # The reason of a fatal error comes before the stacks of all goroutines.
    why = next((line for line in lines if FATAL.match(line)), "\n".join(lines[-5:]))
    kind = _PortTaken if any(words in why for words in PORT_TAKEN) else StoreUnavailable
    raise kind(
        f"store: the embedded S3 server did not start on {server.home}",
        why=why or f"no answer in {START_TIMEOUT_S} s",
        fix=f"read {log}; or set ENGINEFARM_STORE to your own S3 store",
    )


def _prepare(server: Server) -> None:
    """Creates the bucket, and waits until old bytes can be read and new ones written.

    The port answers before the volumes behind it are ready.
    """
    from enginefarm.store import s3

    where = f"s3://{BUCKET}"
    objects = s3.connect(where, endpoint=server.endpoint, credentials=server.credentials)
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            objects.create_bucket()
            objects.get(PROBE)
            objects.put(PROBE, b"ready")
            return
        except StoreError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@contextmanager
def _lock(home: Path) -> Generator[None]:
    """Holds a lock, so that only one process at a time starts or stops the server."""
    lock = FileLock(home / "lock", thread_local=False)
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock.acquire()
    except OSError as error:
        if error.errno in NO_SPACE:
            raise disk_full(home, error.strerror or "") from error
        raise StoreUnavailable(
            f"store: cannot write to {home}",
            why=error.strerror or "",
            fix="set ENGINEFARM_HOME to your own folder, or ENGINEFARM_STORE to an S3 store",
        ) from error
    try:
        yield
    finally:
        lock.release()


def _exists(server: Server) -> bool:
    """Whether the process runs and is that server: another process may have its pid by now."""
    with suppress(OSError):  # reaps it, if this process started it
        os.waitpid(server.pid, os.WNOHANG)
    if not Path("/proc/self").exists():
        return _answers(server)
    try:
        command = Path(f"/proc/{server.pid}/cmdline").read_bytes()
    except OSError:
        return False
    return f"-dir={server.home / 'data'}".encode() in command.split(b"\0")


def _answers(server: Server) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), timeout=2).close()
    except OSError:
        return False
    return True
