"""Metrics as Prometheus would scrape them, summed over a worker and the runs it started."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from enginefarm.errors import FarmError
from enginefarm.farm.worker import healthcheck, metrics

RUN = """
import sys
from enginefarm.farm.worker import metrics
from enginefarm.errors import BuildTimeout
from enginefarm.progress import report
from tests.sample_manifest import make_manifest

spec = make_manifest().spec
with metrics.building(spec), metrics.transfers():
    report("upload", 60, 100, "engine.plan")
    report("upload", 100, 100, "engine.plan")
try:
    with metrics.building(spec):
        raise BuildTimeout("too long")
except BuildTimeout:
    pass
metrics.cached("digits", 3)
metrics.stage("export", hit=True)
metrics.stage("export", hit=False)
"""

AT_ONCE = """
import sys
import threading
from enginefarm.farm.worker import metrics
import prometheus_client

sys.setswitchinterval(1e-6)
together = threading.Barrier(16)
failed = []

def count():
    together.wait()
    try:
        metrics.stage("export", hit=False)
    except Exception as error:
        failed.append(error)

threads = [threading.Thread(target=count) for _ in range(16)]
[one.start() for one in threads]
[one.join() for one in threads]
sys.exit(str(failed) if failed else 0)
"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[metrics.MetricsServer]:
    found = metrics.serve(
        tmp_path / "metrics",
        worker="box-1",
        gpu="t4",
        port=0,
        queue=lambda: {("gpu-t4", "scheduled"): 4, ("gpu-t4", "running"): 1},
    )
    yield found
    found.close()


def scrape(served: metrics.MetricsServer) -> list[str]:
    with urlopen(f"http://127.0.0.1:{served.port}/metrics", timeout=5) as answer:
        return answer.read().decode().splitlines()


def test_counts_of_every_run_are_summed(served: metrics.MetricsServer) -> None:
    for _ in range(2):
        subprocess.run([sys.executable, "-c", RUN], check=True, cwd=Path(__file__).parents[3])
    lines = scrape(served)
    built = [line for line in lines if line.startswith("enginefarm_builds_total{")]
    assert any('outcome="built"' in line and line.endswith(" 2.0") for line in built)
    assert any('outcome="BuildTimeout"' in line and line.endswith(" 2.0") for line in built)
    assert 'enginefarm_transferred_bytes_total{direction="upload"} 200.0' in lines
    assert 'enginefarm_cached_engines_total{recipe="digits"} 6.0' in lines
    assert 'enginefarm_stages_total{result="cached",stage="export"} 2.0' in lines
    assert any(line.startswith("enginefarm_build_seconds_count{") for line in lines)


def test_runs_that_follow_each_other_share_their_files(
    served: metrics.MetricsServer, tmp_path: Path
) -> None:
    """A worker has as many files as runs at once, however many it has had."""

    def files() -> set[str]:
        return {path.name for path in (tmp_path / "metrics").iterdir()}

    run = [
        sys.executable,
        "-c",
        "from enginefarm.farm.worker import metrics; metrics.cached('r', 1)",
    ]
    subprocess.run(run, check=True)
    after_one = files()
    for _ in range(3):
        subprocess.run(run, check=True)
    assert files() == after_one
    waiting = [*run[:-1], f"{run[-1]}; input()"]
    at_once = [subprocess.Popen(waiting, stdin=subprocess.PIPE) for _ in range(3)]
    for process in at_once:
        process.communicate(b"\n", timeout=60)
    assert 'enginefarm_cached_engines_total{recipe="r"} 7.0' in scrape(served)
    assert len(files()) <= 3 * len(after_one)


def test_the_queue_and_the_worker_are_there(served: metrics.MetricsServer) -> None:
    lines = scrape(served)
    assert 'enginefarm_queue_runs{pool="gpu-t4",state="scheduled"} 4.0' in lines
    assert any(line.startswith("enginefarm_worker_info{") and 'gpu="t4"' in line for line in lines)


def test_a_server_that_is_away_costs_the_queue_and_nothing_else(tmp_path: Path) -> None:
    def away() -> dict[tuple[str, str], int]:
        raise ConnectionError

    served = metrics.serve(tmp_path / "m", worker="w", port=0, queue=away)
    try:
        lines = scrape(served)
    finally:
        served.close()
    assert not any("queue_runs{" in line for line in lines)
    assert any("enginefarm_worker_info{" in line for line in lines)


def test_health(tmp_path: Path) -> None:
    well = [True]
    served = metrics.serve(tmp_path / "m", worker="w", port=0, alive=lambda: well[0])
    url = f"http://127.0.0.1:{served.port}/healthz"
    try:
        assert healthcheck.main([url]) == 0
        well[0] = False
        assert healthcheck.main([url]) == 1
        with pytest.raises(HTTPError, match="503"):
            urlopen(url, timeout=5)
    finally:
        served.close()
    assert healthcheck.main([url]) == 1, "nobody listens there any more"


def test_a_taken_port_is_one_clear_error(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(FarmError, match="cannot listen"):
            metrics.serve(tmp_path / "m", worker="w", port=taken.getsockname()[1])


def test_the_first_counts_of_a_process_may_come_at_once() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", AT_ONCE],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
