"""Which engines are compared by their figures, and in which order they come out."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from sample_rows import NIGHT

from enginefarm.tables.speeds import Speed, rank, times_faster


def speed(ms: float, **more: Any) -> Speed:
    fields = {
        "measured_at": dt.datetime.combine(NIGHT, dt.time(3), dt.UTC),
        "runtime": "tensorrt",
        "profile": "default",
        "batch": 1,
        "harness": "enginefarm/2",
        "latency_ms_median": ms,
        "samples_per_s": 1000 / ms,
        **more,
    }
    return Speed.model_validate(fields)


def order(goal: Any, batch: int | None = None, **measured: tuple[Speed, ...]) -> list[str]:
    found = rank(measured, goal, batch)
    return [name for name, _ in found.best_first] if found else []


def test_the_quickest_comes_first_and_for_throughput_the_one_with_most_samples() -> None:
    a, b = speed(2.0, samples_per_s=900), speed(1.0, samples_per_s=800)
    assert order("latency", a=(a,), b=(b,)) == ["b", "a"]
    assert order("throughput", a=(a,), b=(b,)) == ["a", "b"]


@pytest.mark.parametrize(
    "other",
    [
        {"harness": "enginefarm/1"},
        {"harness_flags": "min_seconds=1"},
        {"batch": 8},
        {"cuda_graph": True},
        {"gpu_name": "Tesla T4"},
        {"clocks_locked": True},
        {"power_limit_w": 50},
        {"throttle_reasons": "thermal"},
        {"sm_clock_mhz": 900},
    ],
)
def test_two_that_were_not_measured_alike_are_never_ranked_together(other: dict[str, Any]) -> None:
    found = rank({"a": (speed(2.0, sm_clock_mhz=1500),), "b": (speed(1.0, **other),)}, "latency")
    assert found is not None
    if other.get("sm_clock_mhz") or len(found.best_first) == 1:
        assert len(found.best_first) == 1
    else:
        pytest.fail(f"ranked together: {other}")


def test_the_batch_that_is_asked_for_is_the_only_one() -> None:
    a, b = (speed(1.0), speed(9.0, batch=8)), (speed(2.0), speed(4.0, batch=8))
    assert order("latency", a=a, b=b) == ["a", "b"]
    assert order("latency", 8, a=a, b=b) == ["b", "a"]
    assert order("latency", 16, a=a, b=b) == []


def test_throughput_takes_the_largest_batch_that_covers_as_many_engines() -> None:
    a = (speed(1.0), speed(9.0, batch=8, samples_per_s=880))
    b = (speed(2.0), speed(4.0, batch=8, samples_per_s=1900), speed(5.0, batch=64))
    assert order("throughput", a=a, b=b) == ["b", "a"]


def test_how_many_times_faster_is_told_of_like_conditions_alone() -> None:
    narrow = (speed(1.0), speed(2.0, batch=8), speed(0.1, batch=64))
    wide = (speed(1.0), speed(3.0, batch=8), speed(9.0, batch=32))
    found = times_faster(narrow, wide)
    assert found is not None
    assert found[0] == 1.5
    assert "batch 8" in found[1]
    assert times_faster(narrow, (speed(9.0, batch=16),)) is None
