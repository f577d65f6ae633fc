"""A private Prefect API for one command, with its database in a temporary folder.

    python -P -m enginefarm.farm.server.private SOCKET_FD FOLDER

It never touches a farm's database, and the command's runs appear on no dashboard. The command holds
the other end of the server's standard input: when the command ends, even when it is killed, the
server reads end-of-file, removes the folder and exits.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from enginefarm.errors import FarmError
from enginefarm.farm.server import address, tables
from enginefarm.farm.server.process import collect_garbage_periodically

START_S = 300.0
"""Long, because many commands may start at the same time on a small machine."""

SETTINGS = {
    "PREFECT_UI_ENABLED": "false",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
    # None of Prefect's services: they schedule, clean up and record what nobody will look at.
    "PREFECT__SERVER_WEBSERVER_ONLY": "1",
    "PREFECT__SERVER_FINAL": "1",
}

NO_QUESTIONS = {
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
    "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "false",
}
"""The server is of this version, and takes changes without a token."""


class PrivateApi:
    """The server's process. `wait` before the first request."""

    def __init__(self, listener: socket.socket, folder: str, environment: dict[str, str]) -> None:
        self._port = int(listener.getsockname()[1])
        self._log = Path(folder) / "server.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", __name__),
                    *(str(listener.fileno()), folder),
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=[listener.fileno()],
                start_new_session=True,  # Ctrl-C is for the command, which still writes states
            )

    def wait(self) -> None:
        """Returns when the API answers. Its socket is open from the start: one request waits.

        Raises: FarmError when the server ends instead, or does not answer for START_S.
        """
        connection = HTTPConnection("127.0.0.1", self._port, timeout=START_S)
        try:
            connection.request("GET", "/api/health")
            if connection.getresponse().status == 200:
                return
            why = "it answers, but is not healthy"
        except (OSError, HTTPException) as error:
            why = f"{type(error).__name__}: {self._last_log_line()}"
        finally:
            connection.close()
        raise FarmError(
            "build: the Prefect API of this command did not start",
            why=why,
            fix="run it again; if the machine is busy, wait until it is less busy",
        )

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _last_log_line(self) -> str:
        with suppress(OSError):
            lines = self._log.read_text("utf-8", "replace").strip().splitlines()
            return lines[-1][:300] if lines else "its log is empty"
        return "its log is empty"


@contextmanager
def private_api() -> Generator[PrivateApi]:
    """Starts the server and points this process at it. Enter it before Prefect is imported.

    Raises: FarmError when its folder cannot be created.
    """
    try:
        folder = tempfile.mkdtemp(prefix="enginefarm-api-")
    except OSError as error:
        raise FarmError(
            f"build: cannot make a temporary folder in {tempfile.gettempdir()}",
            why=error.strerror or "",
            fix="free space there, or set TMPDIR to another folder",
        ) from error
    password = secrets.token_urlsafe(24)
    common = {name: text for name, text in os.environ.items() if not _points_to_a_farm(name)}
    common |= {"PREFECT_HOME": folder}
    common |= NO_QUESTIONS
    common.setdefault("PREFECT_LOGGING_TO_API_ENABLED", "false")  # nobody will read them there
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        own = {
            "PREFECT_SERVER_API_AUTH_STRING": password,
            "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder}/prefect.db",
        }
        api = PrivateApi(listener, folder, common | SETTINGS | own)
    os.environ.clear()
    os.environ.update(common | {address.API_URL: url, address.PASSWORD: password})
    try:
        yield api
    finally:
        api.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def without_heartbeats() -> Generator[None]:
    """Flows send none. Nobody listens here, and each flow waits up to a second for their thread."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def _points_to_a_farm(name: str) -> bool:
    """Whether a variable would lead to a farm's server or database."""
    return name.startswith(("PREFECT_API", "PREFECT_SERVER", "PREFECT_PROFILE", "PREFECT_HOME"))


def main(arguments: list[str]) -> None:
    descriptor, folder = int(arguments[0]), Path(arguments[1])
    threading.Thread(target=_exit_with_the_command, args=(folder,), daemon=True).start()
    collect_garbage_periodically()
    tables.create(folder / "prefect.db")

    import uvicorn

    uvicorn.run(
        "prefect.server.api.server:create_app",
        factory=True,
        fd=descriptor,
        log_level="error",
        lifespan="on",
    )


def _exit_with_the_command(folder: Path) -> None:
    sys.stdin.buffer.read()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
