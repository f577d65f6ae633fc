"""What a server can be asked for: the highest rate of requests whose p99 stays within a limit.

Requests come as a Poisson process, whether or not the one before is done, and wait in one queue
for the first of several streams that is free. A request's latency begins when it comes, so waiting
counts; a loop that asks only after an answer never sees it. docs/decisions/0246.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

from pydantic import Field

from enginefarm.progress import report
from enginefarm.schema import Frozen

LOAD = "enginefarm-load/1"


class Clock(Protocol):
    """Seconds."""

    def now(self) -> float: ...

    def sleep_until(self, when: float, ended: threading.Event) -> None:
        """Returns immediately for a time that has passed, and when `ended` is set."""
        ...


class WallClock:
    def now(self) -> float:
        return time.perf_counter()

    def sleep_until(self, when: float, ended: threading.Event) -> None:
        wait = when - time.perf_counter()
        if wait > 0:
            ended.wait(wait)


class Load(Frozen):
    """Settings; all are part of a row."""

    slo_p99_ms: float = Field(gt=0, description="p99 may be at most this.")
    seconds: float = Field(default=5.0, gt=0, description="Each rate, at least.")
    min_requests: int = Field(default=500, ge=100, description="Each rate, at least.")
    step: float = Field(
        default=0.03, gt=0, lt=1, description="The search ends within this share of the capacity."
    )
    seed: int = 0

    @property
    def flags(self) -> str:
        values = {"arrivals": "poisson", **self.model_dump(mode="json", exclude={"slo_p99_ms"})}
        return " ".join(f"{name}={value}" for name, value in sorted(values.items()))


class RateTrial(NamedTuple):
    """One rate. p99_ms: None where it was given up, because too many were late already.

    woken_p99_ms: how late this machine woke a stream that waited for a request (Served.woken_ms).
    """

    rate_per_s: float
    requests: int
    p99_ms: float | None
    within: bool
    woken_p99_ms: float


class Capacity(NamedTuple):
    """The streams' passes a second, asked again as soon as they answer."""

    per_s: float
    median_ms: float


class Curve(NamedTuple):
    """best: the highest rate that kept the limit, with no lower one that did not; None: none."""

    streams: int
    capacity: Capacity
    best: RateTrial | None
    tried: tuple[RateTrial, ...]


def arrivals(rate_per_s: float, requests: int, seed: int) -> list[float]:
    """When requests come, in seconds: a Poisson process. The same seed stretches the same pattern
    to another rate, so that two rates differ by nothing else."""
    chance = random.Random(seed)  # noqa: S311 (no secret)
    found: list[float] = []
    when = 0.0
    for _ in range(requests):
        when += chance.expovariate(1.0) / rate_per_s
        found.append(when)
    return found


Pass = Callable[[], object]


class Served(NamedTuple):
    """latencies_ms: in the order in which requests came; None: p99 cannot keep the limit any more.
    woken_ms: for the requests that a free stream waited for, how late it began with them."""

    latencies_ms: list[float] | None
    woken_ms: list[float]


def offered(due: Sequence[float], streams: Sequence[Pass], clock: Clock, limit_ms: float) -> Served:
    """Offers requests; due: when they come.

    A free stream takes the next request that nobody took and waits for it: of like streams that
    is one queue, first come first served. It ends as soon as p99 cannot keep the limit any more.
    """
    latencies, woken = [0.0] * len(due), list[float]()
    waiting: Iterator[tuple[int, float]] = iter(enumerate(due))
    lock, lost = threading.Lock(), threading.Event()
    allowed = len(due) // 100 + 1  # so many above the limit, and p99 is above it whatever comes
    late = 0
    start = clock.now()

    def serve(one: Pass) -> None:
        nonlocal late
        while not lost.is_set():
            with lock:
                request = next(waiting, None)
            if request is None:
                return
            index, when = request
            waits = clock.now() < start + when
            clock.sleep_until(start + when, lost)
            if lost.is_set():
                return
            if waits:
                woken.append((clock.now() - start - when) * 1000)
            one()
            latencies[index] = (clock.now() - start - when) * 1000
            if latencies[index] > limit_ms:
                with lock:
                    late += 1
                    if late > allowed:
                        lost.set()

    _each(serve, streams, lost)
    return Served(None if lost.is_set() else latencies, woken)


def capacity(streams: Sequence[Pass], seconds: float, clock: Clock) -> Capacity:
    """Every stream busy all the time, for so long; one pass each beforehand warms it."""
    for one in streams:
        one()
    taken: list[float] = []
    ended = threading.Event()
    start = clock.now()

    def ask(one: Pass) -> None:
        while True:  # once at least, however late a busy machine begins
            began = clock.now()
            one()
            taken.append((clock.now() - began) * 1000)
            if ended.is_set() or clock.now() - start >= seconds:
                return

    _each(ask, streams, ended)
    return Capacity(len(taken) / (clock.now() - start), statistics.median(taken))


def _each(work: Callable[[Pass], None], streams: Sequence[Pass], ended: threading.Event) -> None:
    """One thread a stream; one stream needs none. A failure of one is raised, and so is Ctrl-C;
    both set `ended`, because a thread that nobody stops is waited for."""
    if len(streams) == 1:
        work(streams[0])
        return
    with ThreadPoolExecutor(len(streams)) as pool:
        try:
            for done in [pool.submit(work, one) for one in streams]:
                done.result()
        except BaseException:
            ended.set()
            raise


def highest_rate(streams: Sequence[Pass], load: Load, clock: Clock | None = None) -> Curve:
    """Halves the range between a rate that kept the limit and one that did not.

    The capacity itself counts as one that does not: at it a queue has no end, which a short trial
    would not show.
    """
    clock = clock or WallClock()
    most = capacity(streams, load.seconds, clock)
    kept, broken = 0.0, most.per_s
    best: RateTrial | None = None
    tried: list[RateTrial] = []
    while broken - kept > load.step * most.per_s:
        rate = (kept + broken) / 2
        one = _run_trial(rate, streams, load, clock)
        tried.append(one)
        kept, broken = (rate, broken) if one.within else (kept, rate)
        best = one if one.within else best
        report("load", len(tried), None, f"{len(streams)} streams, {rate:.4g}/s")
    return Curve(len(streams), most, best, tuple(tried))


def _run_trial(rate: float, streams: Sequence[Pass], load: Load, clock: Clock) -> RateTrial:
    requests = max(load.min_requests, round(rate * load.seconds))
    due = arrivals(rate, requests, load.seed)
    found = offered(due, streams, clock, load.slo_p99_ms)
    p99 = None if found.latencies_ms is None else _p99(found.latencies_ms)
    within = p99 is not None and p99 <= load.slo_p99_ms
    return RateTrial(rate, requests, p99, within, _p99(found.woken_ms))


def _p99(found_ms: Sequence[float]) -> float:
    """0 where nothing was measured; of one value, that value."""
    if len(found_ms) < 2:
        return max(found_ms, default=0.0)
    return statistics.quantiles(found_ms, n=100, method="inclusive")[98]
