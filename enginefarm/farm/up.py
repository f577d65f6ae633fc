"""A whole farm in one terminal: the server, a control worker, and a worker that cross-builds.

Each part is the command of that name in its own process, which dies with this one. Each part's
output is in a file of `farm/logs` in ENGINEFARM_HOME, which is overwritten at every start.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from enginefarm.child.lifeline import die_with_parent_of
from enginefarm.errors import FarmError
from enginefarm.farm.server import address
from enginefarm.farm.worker.healthcheck import healthy

COMMAND = (sys.executable, "-P", "-c", "from enginefarm.cli import main; main()")

HEALTHY_S = 300.0
STOP_S = 30.0
LOOK_S = 0.3
LAST_LINES = 12


def logs() -> Path:
    return address.folder() / "logs"


class FarmProcess:
    def __init__(self, name: str, *arguments: str) -> None:
        self.name = name
        logs().mkdir(parents=True, exist_ok=True)
        self.log = logs() / f"{name}.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*COMMAND, *arguments],
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us: parts are stopped in their order
                preexec_fn=die_with_parent_of(),
            )

    def check(self) -> None:
        """Raises: FarmError, with the last lines of its log, when it has ended."""
        status = self._process.poll()
        if status is not None:
            said = self.log.read_text("utf-8", "replace").strip().splitlines()[-LAST_LINES:]
            raise FarmError(
                f"up: {self.name} ended with status {status}",
                why="\n       ".join(said) or "its log is empty",
                fix=f"its whole log is {self.log}",
            )

    def has_logged(self, text: str) -> bool:
        return text in self.log.read_text("utf-8", "replace")

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def wait_or_kill(self, patience_s: float) -> None:
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def farm(
    server: Mapping[str, str], say: Callable[[str], None], stopped: threading.Event
) -> Generator[list[FarmProcess]]:
    """Starts the parts one after the other, and stops them at the end.

    server: options of `enginefarm server`. say: receives a line for each step. stopped: an event
    that ends the wait.
    Raises: FarmError when a part ends instead of starting; KeyboardInterrupt when stopped.
    """
    parts: list[FarmProcess] = []
    try:
        say("server    is starting")
        options = [text for name, value in server.items() for text in (f"--{name}", value)]
        parts.append(FarmProcess("server", "server", *options))
        _wait(parts, lambda: _healthy(parts[0]), "the server to answer", stopped)
        deploy = subprocess.run([*COMMAND, "deploy"], capture_output=True, text=True, check=False)
        if deploy.returncode:
            raise FarmError("up: `enginefarm deploy` failed", why=deploy.stderr.strip())
        for name, role in (("control", "--control"), ("cpu", "--cpu")):
            say(f"{name:<8}  is starting")
            parts.append(FarmProcess(name, "worker", role, "--name", f"up-{name}"))
        for part in parts[1:]:
            _wait(
                parts,
                lambda part=part: part.has_logged(": pool "),
                f"the worker {part.name} to be online",
                stopped,
            )
        yield parts
    finally:
        # Workers first: their runs' last states still reach the server.
        for some in (parts[1:], parts[:1]):
            for part in some:
                part.stop()
            for part in some:
                part.wait_or_kill(STOP_S)


def watch(parts: list[FarmProcess], stopped: threading.Event) -> None:
    """Returns when it is stopped. Raises: FarmError when a part ends by itself."""
    while not stopped.wait(LOOK_S):
        for part in parts:
            part.check()


def _healthy(server: FarmProcess) -> bool:
    """The saved URL is this server's once it has logged it; before that it may be an old one."""
    url = address.saved_url() if server.has_logged("password") else None
    return url is not None and healthy(f"{url}/health")


def _wait(
    parts: list[FarmProcess], ready: Callable[[], bool], what: str, stopped: threading.Event
) -> None:
    deadline = time.monotonic() + HEALTHY_S
    while not ready():
        for part in parts:
            part.check()
        if time.monotonic() > deadline:
            raise FarmError(
                f"up: waited {HEALTHY_S:.0f} s for {what}",
                fix=f"see {parts[-1].log}",
            )
        if stopped.wait(LOOK_S):
            raise KeyboardInterrupt


def export_line() -> str:
    """The line to run on other machines. It contains the password."""
    url, password = os.environ[address.API_URL], address.saved_password()
    return f"export {address.API_URL}={url} {address.PASSWORD}={password}"
