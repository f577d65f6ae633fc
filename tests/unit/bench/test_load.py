"""Load on a clock of our own: arrivals, the queue, and the search for the highest rate."""

from __future__ import annotations

import itertools
import math
import statistics
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_onnx

from enginefarm.bench.load import (
    Curve,
    Load,
    WallClock,
    arrivals,
    capacity,
    highest_rate,
    offered,
)
from enginefarm.run.contenders import on_provider

SERVICE_S = 0.010


class FakeClock:
    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def sleep_until(self, when: float, ended: threading.Event) -> None:
        self.time = max(self.time, when)

    def taking(self, *seconds: float) -> Callable[[], None]:
        """A pass that takes so long; of several, the first ones once, and then the last."""
        left = list(seconds)

        def one() -> None:
            self.time += left.pop(0) if len(left) > 1 else left[0]

        return one


def waited(due: list[float], service_s: float) -> list[float]:
    """Lindley's recursion: the waits in a queue with one server, in seconds."""
    found, wait = [0.0], 0.0
    for before, after in itertools.pairwise(due):
        wait = max(0.0, wait + service_s - (after - before))
        found.append(wait)
    return found


def test_arrivals_are_a_poisson_process() -> None:
    due = arrivals(200.0, 20_000, seed=1)
    gaps = np.diff([0.0, *due])
    assert statistics.fmean(gaps) == pytest.approx(1 / 200, rel=0.03)
    assert statistics.pstdev(gaps) == pytest.approx(1 / 200, rel=0.03)  # exponential
    assert np.mean(gaps > 1 / 200) == pytest.approx(math.exp(-1), abs=0.015)
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.03
    counts = np.bincount(np.array(due, dtype=float).astype(int))[:-1]
    assert np.var(counts) == pytest.approx(np.mean(counts), rel=0.35)


def test_a_seed_stretches_one_pattern_to_every_rate() -> None:
    slow, fast = arrivals(10.0, 50, seed=7), arrivals(40.0, 50, seed=7)
    assert slow == pytest.approx([when * 4 for when in fast])
    assert slow != arrivals(10.0, 50, seed=8)


@pytest.mark.parametrize("load", [0.3, 0.7, 0.95, 1.2])
def test_latencies_are_those_of_a_queue(load: float) -> None:
    clock = FakeClock()
    due = arrivals(load / SERVICE_S, 2_000, seed=3)
    found = offered(due, [clock.taking(SERVICE_S)], clock, math.inf).latencies_ms
    assert found == pytest.approx([(w + SERVICE_S) * 1000 for w in waited(due, SERVICE_S)])


def test_waiting_is_what_theory_says() -> None:
    """A queue of Poisson arrivals and one fixed service time: ρS / 2(1 - ρ) on average."""
    clock = FakeClock()
    due = arrivals(0.6 / SERVICE_S, 60_000, seed=5)
    found = offered(due, [clock.taking(SERVICE_S)], clock, math.inf).latencies_ms
    assert found is not None
    theory = 0.6 * SERVICE_S / (2 * (1 - 0.6))
    assert statistics.fmean(found) / 1000 - SERVICE_S == pytest.approx(theory, rel=0.05)


def test_a_pause_is_felt_by_everybody_who_came_meanwhile() -> None:
    """A loop that asks only after an answer would count one slow request."""
    clock = FakeClock()
    due = [0.1 * index for index in range(20)]
    found = offered(due, [clock.taking(1.0, 0.001)], clock, math.inf).latencies_ms
    assert found is not None
    assert found[0] == pytest.approx(1000)
    assert sum(one > 50 for one in found) == 10
    assert found[5] == pytest.approx(505)


def test_a_rate_that_is_lost_is_given_up() -> None:
    clock = FakeClock()
    made: list[int] = []
    one = clock.taking(SERVICE_S)
    found = offered(
        arrivals(10 / SERVICE_S, 1_000, seed=0), [lambda: (one(), made.append(1))], clock, 50
    )
    assert found.latencies_ms is None
    assert len(made) < 50


def test_how_late_the_machine_wakes_a_stream_is_told_apart_from_waiting() -> None:
    """A request that waits in the queue was not woken for, however late it begins."""

    class Sleepy(FakeClock):
        def sleep_until(self, when: float, ended: threading.Event) -> None:
            if when > self.time:
                self.time = when + 0.002

    clock = Sleepy()
    found = offered([1.0, 1.001, 2.0], [clock.taking(SERVICE_S)], clock, math.inf)
    assert found.woken_ms == pytest.approx([2, 2])
    assert found.latencies_ms == pytest.approx([12, 21, 12])
    curve = highest_rate([clock.taking(SERVICE_S)], Load(slo_p99_ms=11), clock)
    assert curve.best is None
    assert {round(one.woken_p99_ms, 6) for one in curve.tried} == {2}


def found(slo_ms: float, service_s: float = SERVICE_S) -> Curve:
    clock = FakeClock()
    return highest_rate([clock.taking(service_s)], Load(slo_p99_ms=slo_ms), clock)


@pytest.mark.parametrize("slo_ms", [15.0, 30.0, 60.0])
def test_the_highest_rate_is_the_one_that_trying_all_finds(slo_ms: float) -> None:
    curve = found(slo_ms)
    assert curve.capacity.per_s == pytest.approx(1 / SERVICE_S)
    assert curve.best is not None
    assert curve.best.p99_ms is not None
    assert curve.best.p99_ms <= slo_ms

    def p99(rate: float) -> float:
        due = arrivals(rate, max(500, round(rate * 5)), seed=0)
        waits = waited(due, SERVICE_S)
        return float(np.percentile([(one + SERVICE_S) * 1000 for one in waits], 99))

    rates = [rate / 4 for rate in range(4, 400)]
    within = [rate for rate in rates if p99(rate) <= slo_ms]
    assert curve.best.rate_per_s == pytest.approx(max(within), abs=0.04 / SERVICE_S)


def test_a_longer_limit_lets_more_in() -> None:
    rates = [one.best.rate_per_s for one in map(found, (15.0, 20.0, 40.0, 80.0)) if one.best]
    assert rates == sorted(set(rates))
    assert len(rates) == 4


def test_no_rate_keeps_a_limit_below_one_pass() -> None:
    curve = found(9.9)
    assert curve.best is None
    assert curve.tried
    assert not any(one.within for one in curve.tried)


def test_a_rate_above_the_capacity_is_never_said() -> None:
    """With a limit longer than the trial no queue is long enough to be seen."""
    curve = found(1e9)
    assert curve.best is not None
    assert 0.96 / SERVICE_S < curve.best.rate_per_s < curve.capacity.per_s


def test_streams_serve_at_the_same_time_and_each_request_once() -> None:
    together = threading.Barrier(3, timeout=30)
    count: list[int] = []

    def one() -> None:
        together.wait()  # goes on only when three streams are in it
        count.append(1)

    latencies = offered([0.0] * 12, [one, one, one], WallClock(), math.inf).latencies_ms
    assert latencies is not None
    assert len(count) == 12
    assert all(one > 0 for one in latencies)


def test_a_stream_that_fails_is_raised() -> None:
    def broken() -> None:
        raise RuntimeError("the session is gone")

    with pytest.raises(RuntimeError, match="the session is gone"):
        offered([0.0] * 4, [broken, broken], WallClock(), math.inf)
    with pytest.raises(RuntimeError, match="the session is gone"):
        capacity([broken], 1.0, FakeClock())


def test_a_busy_machine_that_begins_too_late_measures_one_pass_all_the_same() -> None:
    assert capacity([lambda: None], 0.0, WallClock()).per_s > 0


def test_sessions_of_onnx_runtime(tmp_path: Path) -> None:
    path = tiny_onnx.float_gemm(tmp_path / "model.onnx")
    feeds = {"x": np.ones((8, 4), np.float32)}
    streams = []
    for name in ("one", "two"):
        session = on_provider(name, path, runtime="onnxruntime-cpu")
        session.bind(feeds)
        streams.append(session.iterate)
    load = Load(slo_p99_ms=60_000, seconds=0.02, min_requests=100, step=0.4)
    curve = highest_rate(streams, load)
    assert curve.streams == 2
    assert curve.best is not None
    assert curve.best.p99_ms is not None
    assert 0 < curve.best.p99_ms <= 60_000
    assert curve.best.rate_per_s < curve.capacity.per_s


def test_the_settings_are_in_the_flags() -> None:
    flags = Load(slo_p99_ms=5, seed=9).flags
    assert flags == "arrivals=poisson min_requests=500 seconds=5.0 seed=9 step=0.03"
