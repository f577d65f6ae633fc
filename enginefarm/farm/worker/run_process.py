"""One flow run on a worker: a process that Python's forkserver forks. It dies with its worker.

Importing Prefect and our flows takes over a second of the processor; a fork of a process that has
imported them (preloaded.py) takes a hundredth of that.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module
from multiprocessing import forkserver
from typing import TYPE_CHECKING, NamedTuple

import anyio
from prefect import flow_engine
from prefect.runner._process_manager import ProcessHandle
from prefect.settings import get_current_settings

from enginefarm.child.lifeline import die_with_parent

if TYPE_CHECKING:
    from anyio.abc import TaskStatus
    from prefect.client.schemas.objects import FlowRun
    from prefect.runner._control_channel import ControlChannel

FLOWS = (
    "flows.benchmark_engine",
    "flows.build_engine",
    "flows.build_model",
    "flows.nightly_rebuild",
    "flows.promote",
)

PRELOADED = "enginefarm.farm.worker.preloaded"

RUN_PREFIX = "PREFECT__"
"""The prefix of variables that differ from run to run. All others are settings, which Prefect
reads when it is imported."""


def prepare() -> None:
    """Starts the forkserver, which imports what runs need while the worker itself starts.

    Call it in the main thread: the forkserver dies with the thread that has started it. Should it
    be killed, its runs die, and the next run starts another one.
    """
    os.environ.update(get_current_settings().to_environment_variables(exclude_unset=True))
    # Else multiprocessing makes its own folder there, and fails to remove it after the worker has.
    multiprocessing.current_process()._config["tempdir"] = tempfile.gettempdir()  # pyright: ignore
    forkserver.set_forkserver_preload([PRELOADED])
    forkserver.ensure_running()


class RunStarter(NamedTuple):
    """How Prefect's executor starts a run.

    variables: on top of the worker's own; None: without it.
    channel: by it a run hears that it is cancelled.
    """

    variables: Mapping[str, str | None]
    folder: str
    channel: ControlChannel

    async def start(
        self,
        flow_run: FlowRun,
        task_status: TaskStatus[ProcessHandle] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Returns when the run has ended. Canceled, it ends the run and waits for it."""
        named = {**os.environ, **self.variables}
        environment = {name: value for name, value in named.items() if value is not None}
        with suppress(RuntimeError):  # the channel has no port: then a signal alone cancels
            port, token = self.channel.register(flow_run.id)
            environment |= {"PREFECT__CONTROL_PORT": str(port), "PREFECT__CONTROL_TOKEN": token}
        context = multiprocessing.get_context("forkserver")
        process = context.Process(target=run, args=(environment, self.folder))
        process.start()
        task_status.started(ProcessHandle(process))  # pyright: ignore[reportArgumentType]
        try:
            await anyio.wait_readable(process.sentinel)
        except BaseException:
            process.terminate()
            with anyio.CancelScope(shield=True):
                await anyio.wait_readable(process.sentinel)
            raise
        finally:
            process.join()


def run(environment: Mapping[str, str], folder: str) -> None:
    """A flow run with exactly this environment, in a process that was just forked.

    With other settings than the forkserver has read, or from one that has not imported what it
    was told to (it ignores ImportError), this process becomes a new Python.
    """
    preloaded = sys.modules.get(PRELOADED)
    die_with_parent(preloaded.PID if preloaded else os.getppid())
    os.chdir(folder)
    os.set_inheritable(0, True)  # multiprocessing opens /dev/null for this process alone
    if preloaded is None or _settings(environment) != _settings(os.environ):
        print("run: it starts a Python of its own, for which it imports anew", file=sys.stderr)
        python = [sys.executable, "-P", "-m", __name__]
        os.execve(sys.executable, python, environment)  # noqa: S606
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = preloaded.PATH
    del sys.argv[1:]
    try:
        engine()
    finally:  # as any Python ends; multiprocessing leaves by `os._exit`
        threading._shutdown()  # pyright: ignore
        atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]


def _settings(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(RUN_PREFIX)}


def import_flows() -> None:
    """Imports our flows before Prefect looks for them. It looks in the working folder first, which
    may have an unrelated folder called `flows`."""
    for name in FLOWS:
        import_module(name)


def do_not_wait_for_heartbeats() -> None:
    """A flow that has ended would wait up to a second for the thread of its heartbeats."""
    flow_engine._send_heartbeats = partial(  # pyright: ignore[reportPrivateUsage]
        flow_engine._send_heartbeats,  # pyright: ignore[reportPrivateUsage]
        join_on_exit=False,
    )


def engine() -> None:
    """Prefect's own way to run a flow run, in this process."""
    import_flows()
    do_not_wait_for_heartbeats()
    sys.modules.pop("prefect.engine", None)  # else runpy warns of what the forkserver has imported
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    engine()
