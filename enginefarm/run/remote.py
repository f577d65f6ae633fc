"""A contender in another Python: PyTorch and TensorRT seldom share one environment.

The other process times its own passes, on the same GPU and in its turn; what crosses the
pipe (inputs once, three numbers a pass) is outside every measured interval.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginefarm.child.lifeline import become_child
from enginefarm.child.process import kill_group, start
from enginefarm.errors import EngineRunError
from enginefarm.run.running import Contender, Iteration
from enginefarm.tables.rows import Runtime

if TYPE_CHECKING:
    import numpy as np

    Arrays = dict[str, np.ndarray[Any, Any]]


CLOSES_S = 30


def this_python() -> tuple[str, ...]:
    """For a contender in a fresh process of this same environment."""
    return (sys.executable, "-P")


class RemoteContender:
    """A contender that `module:function` makes in a process of `python`."""

    def __init__(
        self,
        name: str,
        *,
        runtime: Runtime,
        python: Sequence[str],
        factory: str,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """environment: on top of a short list of harmless variables; no credentials.

        Raises: EngineRunError with the other process's words when it does not start."""
        self.name = name
        self.runtime: Runtime = runtime
        self._connection, theirs = Pipe()
        with theirs:
            self._process = start(
                [
                    *(*python, "-m", "enginefarm.run.remote"),
                    *(str(os.getpid()), str(theirs.fileno()), factory, *arguments),
                ],
                Path(tempfile.gettempdir()),
                stdout=2,  # what it prints is no answer of ours: `--json` owns the other one
                pass_fds=(theirs.fileno(),),
                environment=environment,
            )
        try:
            self._ask("ready")
        except BaseException:
            self.close()
            raise

    def bind(self, feeds: Mapping[str, Any]) -> None:
        self._ask("bind", dict(feeds))

    def iterate(self) -> Iteration:
        return Iteration(*self._ask("iterate"))

    def outputs(self) -> Arrays:
        found: Arrays = self._ask("outputs")
        return found

    def close(self) -> None:
        self._connection.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSES_S)
        kill_group(self._process)

    def _ask(self, *request: Any) -> Any:
        try:
            self._connection.send(request)
            worked, answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise EngineRunError(f"{self.name}: its process ended", why=str(error)) from None
        if not worked:
            raise EngineRunError(f"{self.name}: failed in its process", why=str(answer))
        return answer


def serve(parent_pid: str, descriptor: str, factory: str, *arguments: str) -> None:
    """The other side: makes the contender, and answers until the connection closes."""
    become_child(int(parent_pid))
    with Connection(int(descriptor)) as connection:
        contender: Contender | None = None
        while True:
            try:
                verb, *values = connection.recv()
            except EOFError:
                return
            try:
                if contender is None:
                    module, _, function = factory.partition(":")
                    contender = getattr(import_module(module), function)(*arguments)
                connection.send((True, _answer(contender, verb, values)))
            except Exception as error:
                connection.send((False, f"{type(error).__name__}: {error}"))


def _answer(contender: Any, verb: str, values: list[Any]) -> Any:
    if verb == "ready":
        return None
    found = getattr(contender, verb)(*values)
    return tuple(found) if verb == "iterate" else found


if __name__ == "__main__":
    serve(*sys.argv[1:])
