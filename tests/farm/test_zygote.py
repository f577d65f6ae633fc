"""Runs that are forked: they end as if they had been started, and die with who leads them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from enginefarm.farm.worker import zygote
from enginefarm.farm.worker.run_process import SOCKET
from tests.farm.farm_fixture import PATIENCE_S

LEADER = [sys.executable, "-m", "enginefarm.farm.worker.run_process"]
NO_RUN = {"PREFECT__FLOW_RUN_ID": "none such"}
"""Prefect's engine refuses it: status 1, and why on standard error."""


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a worker that keeps a zygote, whose imports are done."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.delenv(SOCKET, raising=False)
    with zygote.running(dict(os.environ)):
        lead(dict(os.environ))
        yield dict(os.environ)


def lead(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        LEADER,
        env={**environment, **NO_RUN},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def zygotes() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [one for one in children if "enginefarm.farm.worker.zygote" in " ".join(one.cmdline())]


def seconds(environment: dict[str, str]) -> float:
    started = time.monotonic()
    ended = lead(environment)
    assert (ended.returncode, "Invalid flow run id" in ended.stderr) == (1, True)
    return time.monotonic() - started


def test_a_run_ends_with_its_own_status_and_output_and_imports_nothing_anew(
    worker: dict[str, str],
) -> None:
    alone = {name: value for name, value in worker.items() if name != SOCKET}
    assert min(seconds(worker) for _ in range(3)) < seconds(alone) / 2


def test_runs_that_end_leave_no_process_behind(worker: dict[str, str]) -> None:
    for _ in range(5):
        assert lead(worker).returncode == 1
    (first,) = zygotes()
    psutil.wait_procs(first.children(recursive=True), timeout=5)
    assert first.children(recursive=True) == []
    # What they took of the processor is known after they have ended: benchmarks/farm.py asks.
    times = first.cpu_times()
    assert times.children_user + times.children_system > 0


def test_other_settings_than_the_workers_are_imported_anew(worker: dict[str, str]) -> None:
    other = {**worker, "PREFECT_LOGGING_LEVEL": "DEBUG"}
    assert min(seconds(other) for _ in range(2)) > 2 * min(seconds(worker) for _ in range(3))


def test_a_killed_zygote_is_missed_by_nobody_and_comes_again(worker: dict[str, str]) -> None:
    (killed,) = zygotes()
    killed.kill()
    killed.wait(10)
    assert "Invalid flow run id" in lead(worker).stderr
    deadline = time.monotonic() + PATIENCE_S
    while not zygotes() and time.monotonic() < deadline:
        time.sleep(0.1)
    (again,) = zygotes()
    assert again.pid != killed.pid
    assert lead(worker).returncode == 1


@pytest.mark.parametrize("whom", ["run_process", "zygote", "keeper"])
def test_a_run_dies_with_each_process_that_leads_it(
    whom: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # its run waits for an answer
        monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/api")
        with zygote.running(dict(os.environ)):
            deadline = time.monotonic() + PATIENCE_S
            while not Path(os.environ[SOCKET]).exists():
                assert time.monotonic() < deadline
                time.sleep(0.1)
            environment = {**os.environ, "PREFECT__FLOW_RUN_ID": str(uuid4())}
            leader = subprocess.Popen(LEADER, env=environment)
            while len(led := [p for one in zygotes() for p in one.children(recursive=True)]) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            (first,) = zygotes()
            (keeper,) = first.children()
            (run,) = keeper.children()
            assert set(led) == {keeper, run}
            pid = {"run_process": leader.pid, "zygote": first.pid, "keeper": keeper.pid}[whom]
            os.kill(pid, signal.SIGKILL)
            assert leader.wait(10) != 0
            psutil.wait_procs(led, timeout=10)
            assert not [p for p in led if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_the_zygote_has_no_thread_that_a_fork_would_lose() -> None:
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
    """What code prints in a process that has imported and read what a zygote does."""
    said = f"import os, sys; from enginefarm.farm.worker import zygote; zygote.preload();{code}"
    ended = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    return ended.stdout.strip()
