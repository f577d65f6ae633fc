"""Runs that Python's forkserver forks: they end as if they had been started, and die with who leads
them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import psutil
import pytest

from tests.farm.farm_fixture import PATIENCE_S, until
from tests.processes import alive

WORKER = """
import asyncio, json, os, signal, sys, tempfile, time
from types import SimpleNamespace
from uuid import uuid4
from enginefarm.farm.worker import run_process
from enginefarm.farm.worker.serve import private_tmpdir

class Channel:
    def register(self, run_id):
        raise RuntimeError

async def run(variables, cancel):
    handles = []
    with tempfile.TemporaryDirectory() as folder:
        starter = run_process.RunStarter(variables, folder, Channel())
        status = SimpleNamespace(started=handles.append)
        running = asyncio.ensure_future(starter.start(SimpleNamespace(id=uuid4()), status))
        if cancel:
            await asyncio.sleep(0.5)
            running.cancel()
        await asyncio.wait([running])
    return handles[0].returncode

async def main():
    signal.signal(signal.SIGTERM, lambda *_: None)
    run_process.prepare()
    for line in sys.stdin:
        started = time.monotonic()
        status = await run(*json.loads(line))
        print(json.dumps([status, time.monotonic() - started]), flush=True)

with private_tmpdir():
    asyncio.run(main())
"""

NO_RUN = {"PREFECT__FLOW_RUN_ID": "none such"}
"""Prefect's engine refuses it: status 1, and why on standard error."""


class Worker(NamedTuple):
    """A process that starts runs as a worker does, one after the other."""

    process: subprocess.Popen[str]
    errors: Path
    environment: dict[str, str]

    def begin(self, variables: Mapping[str, str | None], *, cancel: bool = False) -> None:
        """Starts a run, with these variables on top of the worker's; None: without it."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps([variables, cancel]) + "\n")
        self.process.stdin.flush()

    def end(self) -> tuple[int, float]:
        """The status of the run, and the seconds that it took."""
        assert self.process.stdout
        status, seconds = json.loads(self.process.stdout.readline())
        return status, seconds

    def run(self, **environment: str) -> tuple[int, float]:
        self.begin({**NO_RUN, **environment})
        return self.end()

    def forkservers(self) -> list[psutil.Process]:
        return [
            one
            for one in psutil.Process(self.process.pid).children()
            if "multiprocessing.forkserver" in " ".join(one.cmdline())
        ]

    def forkserver(self) -> psutil.Process:
        (found,) = self.forkservers()
        return found

    def one_run(self) -> psutil.Process:
        found: list[psutil.Process] = []

        def there() -> bool:
            found[:] = [run for one in self.forkservers() for run in one.children()]
            return bool(found)

        until(there, "the run is there", pause_s=0.02)
        return found[0]


@contextmanager
def worker_with(folder: Path, **environment: str) -> Iterator[Worker]:
    variables = {**os.environ, "PREFECT_HOME": str(folder / "prefect"), **environment}
    with (folder / "errors").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", WORKER],
            env=variables,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    with process:
        try:
            yield Worker(process, folder / "errors", variables)
        finally:
            process.kill()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    """Its forkserver has imported all."""
    with worker_with(tmp_path) as made:
        assert made.run()[0] == 1
        yield made


def test_a_run_ends_with_its_own_status_and_output_and_imports_nothing_anew(
    worker: Worker,
) -> None:
    forked = [worker.run() for _ in range(3)]
    assert {status for status, _ in forked} == {1}
    assert worker.errors.read_text().count("Invalid flow run id") == 4
    command = [sys.executable, "-P", "-m", "enginefarm.farm.worker.run_process"]
    started = time.monotonic()
    alone = subprocess.run(
        command, env={**worker.environment, **NO_RUN}, capture_output=True, check=False
    )
    assert alone.returncode == 1
    assert min(seconds for _, seconds in forked) < (time.monotonic() - started) / 4


def test_runs_that_end_leave_no_process_and_no_open_file_behind(worker: Worker) -> None:
    leader = psutil.Process(worker.process.pid)
    before = leader.num_fds()
    for _ in range(5):
        assert worker.run()[0] == 1
    assert leader.num_fds() <= before
    assert worker.forkserver().children() == []
    # What they took of the processor is known after they have ended: benchmarks/farm.py asks.
    times = worker.forkserver().cpu_times()
    assert times.children_user + times.children_system > 0


def test_a_worker_that_ends_leaves_no_file_behind_and_says_nothing(tmp_path: Path) -> None:
    with (
        tempfile.TemporaryDirectory() as temporary,
        worker_with(tmp_path, TMPDIR=temporary) as worker,
    ):
        assert worker.run()[0] == 1
        assert worker.process.stdin
        worker.process.stdin.close()
        assert worker.process.wait(PATIENCE_S) == 0
        assert [*Path(temporary).iterdir()] == []
    assert "multiprocessing" not in worker.errors.read_text()


def test_other_settings_than_the_workers_are_imported_anew(worker: Worker) -> None:
    status, seconds = worker.run(PREFECT_LOGGING_LEVEL="DEBUG")
    assert status == 1
    assert seconds > 4 * worker.run()[1]
    said = worker.errors.read_text()
    assert "a Python of its own" in said
    assert "| DEBUG   | prefect" in said


def test_a_killed_forkserver_is_missed_by_nobody_and_comes_again(worker: Worker) -> None:
    killed = worker.forkserver()
    killed.kill()
    assert alive([killed]) == []
    assert worker.run()[0] == 1
    assert worker.errors.read_text().count("Invalid flow run id") == 2
    assert worker.forkserver().pid != killed.pid


@pytest.fixture
def silent() -> Iterator[dict[str, str]]:
    """A run of a server that never answers: it waits."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield {
            "PREFECT_API_URL": f"http://127.0.0.1:{server.getsockname()[1]}/api",
            "PREFECT__FLOW_RUN_ID": str(uuid4()),
        }


@pytest.mark.parametrize("settings", ["same", "other"])
@pytest.mark.parametrize("whom", ["worker", "forkserver"])
def test_a_run_dies_with_each_process_that_leads_it(
    whom: str, settings: str, silent: dict[str, str], tmp_path: Path
) -> None:
    url = silent["PREFECT_API_URL"] if settings == "same" else "http://127.0.0.1:9/api"
    with worker_with(tmp_path, PREFECT_API_URL=url) as worker:
        worker.begin(silent)
        run = worker.one_run()
        if settings == "other":
            until(lambda: "run_process" in " ".join(run.cmdline()), "it imports", pause_s=0.02)
        led = [worker.forkserver(), run]
        os.kill(worker.process.pid if whom == "worker" else led[0].pid, signal.SIGKILL)
        assert alive(led, 10) == []
        if whom == "forkserver":
            status, _ = worker.end()
            assert status != 0, "its worker reports a crash"


def test_a_worker_that_stops_at_once_ends_its_run_and_waits_for_it(
    silent: dict[str, str], tmp_path: Path
) -> None:
    with worker_with(tmp_path, PREFECT_API_URL=silent["PREFECT_API_URL"]) as worker:
        assert worker.run()[0] == 1
        worker.begin(silent, cancel=True)
        run = worker.one_run()
        status, _ = worker.end()
        assert status == -signal.SIGTERM
        assert not run.is_running()


def test_what_is_sent_to_the_workers_group_does_not_reach_its_runs(
    silent: dict[str, str], tmp_path: Path
) -> None:
    """A supervisor or a terminal sends SIGTERM to all: a worker that drains needs its runs."""
    with worker_with(tmp_path, PREFECT_API_URL=silent["PREFECT_API_URL"]) as worker:
        assert worker.run()[0] == 1
        worker.begin(silent)
        run = worker.one_run()
        os.killpg(worker.process.pid, signal.SIGTERM)
        with pytest.raises(psutil.TimeoutExpired):
            run.wait(1)
        forkserver = worker.forkserver()
        run.terminate()
        assert worker.end()[0] == -signal.SIGTERM
        assert worker.run()[0] == 1
        assert worker.forkserver() == forkserver


def test_a_run_has_the_environment_that_it_was_given_and_no_more(tmp_path: Path) -> None:
    """Prefect tells the server by headers what the variables of a run say."""
    with (
        api() as (url, heard),
        worker_with(tmp_path, PREFECT_API_URL=url, PREFECT__FLOW_NAME="theirs") as worker,
    ):
        worker.begin(
            {
                "PREFECT__FLOW_RUN_ID": str(uuid4()),
                "PREFECT__FLOW_NAME": None,
                "PREFECT__WORKER_NAME": "ours",
            }
        )
        assert worker.end()[0] == 1
    names = {name.lower(): text for name, text in heard[0].items()}
    assert names["x-prefect-worker-name"] == "ours"
    assert "x-prefect-flow-name" not in names


def test_a_run_ends_as_any_python_does(tmp_path: Path) -> None:
    """multiprocessing would leave without what modules have registered for the end."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os, sys\n"
        "say = lambda: print('left', os.environ.get('PREFECT__FLOW_NAME'), file=sys.stderr)\n"
        "atexit.register(say)"
    )
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    with worker_with(tmp_path, PYTHONPATH=path) as worker:
        assert worker.run(PREFECT__FLOW_NAME="ours")[0] == 1
        assert "left ours" in worker.errors.read_text()


@contextmanager
def api() -> Iterator[tuple[str, Sequence[Any]]]:
    """A server that finds nothing, and the headers of what it was asked."""
    heard: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.headers)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/api", heard
        server.shutdown()
        thread.join()


def test_modules_in_the_workers_folder_are_not_imported(tmp_path: Path) -> None:
    """A worker that was started with its own folder on the path."""
    for name in ("flows", "tasks", "prefect", "decimal"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name}: yours')")
    command = (
        "import sys; sys.path.append(''); from enginefarm.farm.worker import run_process as r;"
        "from multiprocessing import get_context; r.prepare();"
        "p = get_context('forkserver').Process(target=r.run, args=(dict(r.os.environ), '.'));"
        "p.start(); p.join()"
    )
    environment = {**os.environ, **NO_RUN, "PYTHONSAFEPATH": "1", "PREFECT_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert "Invalid flow run id" in done.stderr
    assert "yours" not in done.stderr


def test_the_forkserver_has_no_thread_that_a_fork_would_lose() -> None:
    ended = preloaded(
        "print(len(os.listdir('/proc/self/task')),"
        " sorted({'torch', 'onnx', 'tensorrt', 'pycuda'} & sys.modules.keys()))"
    )
    assert ended == "1 []"


def test_a_forked_run_opens_the_store_without_an_import_or_a_file_to_read() -> None:
    ended = preloaded(
        "before = set(sys.modules); read = [];"
        "sys.addaudithook(lambda event, args: read.append(args[0]) if event == 'open' else None);"
        "from enginefarm.store import s3;"
        "s3.connect('s3://farm', endpoint='http://127.0.0.1:9');"
        "print(sorted(set(sys.modules) - before), [one for one in read if 'json' in str(one)])"
    )
    assert ended == "[] []"


def preloaded(code: str) -> str:
    """What code prints in a process that has imported and read what the forkserver does."""
    said = f"import os, sys; from enginefarm.farm.worker import preloaded; {code}"
    ended = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    return ended.stdout.strip()
