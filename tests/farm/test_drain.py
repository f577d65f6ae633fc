"""SIGTERM lets a worker's run end; a second one does not."""

from __future__ import annotations

import signal
import time

from tests.farm.farm_fixture import Farm, until
from tests.farm.interrupted import hold, start
from tests.processes import gone

LABEL = "a100"
SAID = "takes no more runs"


def told_to_stop(farm: Farm) -> None:
    """Sends SIGTERM, and waits for the worker's word that it has heard."""
    before = farm.log(LABEL).count(SAID)
    farm.processes[LABEL].send_signal(signal.SIGTERM)
    until(lambda: farm.log(LABEL).count(SAID) > before, "the worker says so", 60)


def test_a_worker_that_is_told_to_stop_ends_its_build_first(farm: Farm) -> None:
    worker = farm.processes[LABEL]
    try:
        run_id = start(farm, "drained", LABEL)
        (builder,) = hold(farm, LABEL)
        told_to_stop(farm)
        assert worker.poll() is None, "it stays for its build"
        builder.resume()
        ended = farm.wait(run_id)
        assert ended.state.is_completed(), ended.state.message
        (child,) = farm.children(run_id)
        assert child.run_count == 1, "nothing was done twice"
        assert any("Finished in state" in line for line in farm.lines(child.id)), "all is sent"
        assert worker.wait(30) == 0
    finally:
        farm.stop(LABEL, signal.SIGKILL)
        farm.start_worker(LABEL, "--gpu", LABEL, "--cross")


def test_told_twice_it_stops_at_once(farm: Farm) -> None:
    worker = farm.processes[LABEL]
    try:
        run_id = start(farm, "twice", LABEL)
        (builder,) = hold(farm, LABEL)
        told_to_stop(farm)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0
        until(lambda: gone(builder), "the builder goes with it", 10)
        assert list(farm.store.manifests("twice")) == []
    finally:
        farm.stop(LABEL, signal.SIGKILL)
        farm.start_worker(LABEL, "--gpu", LABEL, "--cross")
    # The worker builds it again. Without this wait, the next test would find that build.
    ended = farm.wait(run_id)
    assert ended.state.is_completed(), ended.state.message


def test_told_to_stop_while_it_starts_it_stops(farm: Farm) -> None:
    worker = farm.start("hasty", "worker", "--name", "hasty", "--cpu")
    try:
        until(lambda: "hasty: pool" in farm.log("hasty"), "it starts", pause_s=0.02)
        time.sleep(0.1)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) in (0, -signal.SIGTERM), farm.log("hasty")
    finally:
        farm.stop("hasty", signal.SIGKILL)
