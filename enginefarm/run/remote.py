"""A contender in another Python: PyTorch and TensorRT seldom share one environment.

The other process times its own passes, on the same GPU and in its turn; what crosses the
pipe (inputs once, three numbers a pass) is outside every measured interval.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginefarm.child.cancellation import CANCEL
from enginefarm.child.lifeline import become_child
from enginefarm.child.process import MemoryWatch, kill_group, start
from enginefarm.errors import BuildCancelled, EngineRunError
from enginefarm.names import RuntimeName, loaded
from enginefarm.run.running import Contender, Iteration
from enginefarm.settings import build_limits

if TYPE_CHECKING:
    from enginefarm.graph.model.arrays import Arrays


CLOSES_S = 30
POLL_S = 0.2


class RemoteContender(Contender):
    """A contender that `module:function` makes in a process of `python`."""

    def __init__(
        self,
        name: str,
        *,
        runtime: RuntimeName,
        factory: str,
        python: Sequence[str] = (sys.executable, "-P"),
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """environment: on top of a short list of harmless variables; no credentials.

        Raises: EngineRunError with the other process's words when it does not start."""
        self.name = name
        self.runtime = runtime
        self._connection, theirs = Pipe()
        with theirs:
            self._process = start(
                [
                    *(*python, "-m", "enginefarm.run.remote"),
                    *(str(os.getpid()), str(theirs.fileno()), factory, *arguments),
                ],
                Path(tempfile.gettempdir()),
                stdout=2,  # what it prints is not our answer: `--json` owns the other one
                pass_fds=(theirs.fileno(),),
                environment=environment,
            )
        try:
            self._ask("ready")
        except BaseException:
            self.close()
            raise

    def bind(self, feeds: Mapping[str, Any]) -> None:
        self._ask("bind", feeds)

    def iterate(self) -> Iteration:
        return Iteration(*self._ask("iterate")[0])

    def turn(self, passes: int) -> list[Iteration]:
        return [Iteration(*one) for one in self._ask(f"turn {passes:d}")[0]]

    def outputs(self) -> Arrays:
        return self._ask("outputs")[1]

    def close(self) -> None:
        self._connection.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSES_S)
        kill_group(self._process)

    def _ask(self, verb: str, feeds: Mapping[str, Any] | None = None) -> tuple[Any, Arrays]:
        try:
            self._connection.send_bytes(_pack(verb, feeds or {}))
            answer, arrays = _unpack(self._receive())
            worked, value = answer
        except (EOFError, OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
            raise EngineRunError(f"{self.name}: its process ended", why=str(error)) from None
        if not worked:
            raise EngineRunError(f"{self.name}: failed in its process", why=str(value))
        return value, arrays

    def _receive(self) -> bytes:
        """The answer. Raises: BuildCancelled; EngineRunError when none comes for too long."""
        limit_s = build_limits().timeout_s
        started = time.monotonic()
        memory = MemoryWatch()
        while not self._connection.poll(POLL_S):
            found = memory.too_much(self._process.pid)
            if found is not None:
                kill_group(self._process)
                raise EngineRunError(f"{self.name}: {found.words}", fix=found.fix)
            if CANCEL.is_set():
                raise BuildCancelled(f"{self.name}: cancelled")
            if time.monotonic() - started > limit_s:
                raise EngineRunError(
                    f"{self.name}: no answer after {limit_s:g} s",
                    fix="raise ENGINEFARM_BUILD_TIMEOUT_S, or give it less to do",
                )
        return self._connection.recv_bytes()


def serve(parent_pid: str, descriptor: str, factory: str, *arguments: str) -> None:
    """The other side: makes the contender, and answers until the connection closes."""
    become_child(int(parent_pid))
    contender: Contender | None = None
    # It is closed in whatever this process does then: whoever asked was interrupted, or has ended.
    with suppress(EOFError, ConnectionError), Connection(int(descriptor)) as connection:
        while True:
            verb, feeds = _unpack(connection.recv_bytes())
            try:
                if contender is None:
                    contender = loaded(factory)(*arguments)
                answer = _answer(contender, verb, feeds)
            except Exception as error:
                answer = _pack((False, f"{type(error).__name__}: {error}"), {})
            connection.send_bytes(answer)


def _answer(contender: Any, verb: str, feeds: Arrays) -> bytes:
    if verb == "bind":
        contender.bind(feeds)
    passed = [*contender.iterate()] if verb == "iterate" else None
    if verb.startswith("turn "):
        passed = contender.turn(int(verb.removeprefix("turn ")))
    return _pack((True, passed), contender.outputs() if verb == "outputs" else {})


def _pack(value: Any, arrays: Mapping[str, Any]) -> bytes:
    """A JSON value and named arrays. Not pickle: the other process may be hostile."""
    import numpy as np

    buffer = io.BytesIO()
    head = np.frombuffer(json.dumps(value).encode(), np.uint8)
    np.savez(buffer, head, *arrays.values(), names=np.array([*arrays], dtype=np.str_))
    return buffer.getvalue()


def _unpack(data: bytes) -> tuple[Any, Arrays]:
    import numpy as np

    with np.load(io.BytesIO(data), allow_pickle=False) as found:
        arrays = {str(name): found[f"arr_{i}"] for i, name in enumerate(found["names"], 1)}
        return json.loads(found["arr_0"].tobytes()), arrays


if __name__ == "__main__":
    serve(*sys.argv[1:])
