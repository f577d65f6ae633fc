from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sample_rows import make_row

from enginefarm.documents.thresholds import Regression
from enginefarm.tables.regression import baseline, classify, judge, walk
from enginefarm.tables.rows import BenchmarkRow

RULE = Regression()
CALM = [2.00, 2.02, 1.99, 2.01, 2.00, 1.98, 2.03, 2.00]


def nights(*latencies: float, **changes: object) -> list[BenchmarkRow]:
    return [make_row(i, latency_ms_median=value, **changes) for i, value in enumerate(latencies)]


def test_slower_than_every_night_before_is_said_with_by_how_much() -> None:
    *earlier, tonight = nights(*CALM, 2.6)
    verdict = judge([tonight], earlier, RULE)
    assert verdict.state == "slower"
    assert "1.30 × the last 8 nights" in verdict.because
    assert verdict.ratio == pytest.approx(1.3)


@pytest.mark.parametrize(("latency", "state"), [(2.05, "ok"), (2.19, "ok"), (1.6, "faster")])
def test_within_the_ratio_is_ok_and_far_below_is_faster(latency: float, state: str) -> None:
    *earlier, tonight = nights(*CALM, latency)
    assert judge([tonight], earlier, RULE).state == state


def test_one_bad_night_in_the_baseline_neither_alarms_nor_hides() -> None:
    *earlier, tonight = nights(2.0, 2.02, 40.0, 1.99, 2.01, 2.0, 2.02)
    assert judge([tonight], earlier, RULE).state == "ok"
    slow = tonight.model_copy(update={"latency_ms_median": 2.5})
    assert judge([slow], earlier, RULE).state == "slower"


def test_a_noisy_baseline_asks_for_more_than_the_ratio() -> None:
    *earlier, tonight = nights(2.0, 2.6, 1.7, 2.9, 2.2, 1.8, 2.7, 2.75)
    verdict = judge([tonight], earlier, RULE)
    assert verdict.state == "ok"
    assert verdict.history is not None
    assert verdict.history.limit_ms > RULE.latency_ratio * verdict.history.median_ms


def test_too_few_nights_give_no_verdict_and_say_how_many_are_needed() -> None:
    *earlier, tonight = nights(2.0, 2.0, 9.0)
    verdict = judge([tonight], earlier, RULE)
    assert verdict.state == "no-baseline"
    assert "2 nights are comparable, 5 are needed" in verdict.because


def test_nights_that_are_not_alike_are_left_out_with_the_reason() -> None:
    earlier = nights(*CALM, toolchain_build="10.9.0.34")
    verdict = judge([make_row(20, latency_ms_median=9.0)], earlier, RULE)
    assert verdict.state == "no-baseline"
    assert verdict.left_out == ("8 × toolchain build differs: 10.16.1.11 and 10.9.0.34",)


def test_unstable_timings_are_neither_judged_nor_a_baseline() -> None:
    earlier = nights(*CALM)
    shaky = make_row(20, latency_ms_median=9.0, cov_verdict="unstable")
    assert judge([shaky], earlier, RULE).state == "unstable"
    verdict = judge([make_row(20)], nights(*CALM, cov_verdict="unstable"), RULE)
    assert verdict.state == "no-baseline"
    assert verdict.left_out == ("8 × unstable",)


def test_slower_than_production_tonight_is_slower_even_without_history() -> None:
    production = make_row(20, latency_ms_median=2.0, engine_digest="ee" * 32)
    verdict = judge([make_row(20, latency_ms_median=2.5)], [], RULE, production=[production])
    assert verdict.state == "slower"
    assert "1.25 × production" in verdict.because


def test_a_slow_drift_that_history_forgives_is_caught_by_production() -> None:
    drifted = [2.0 * 1.03**i for i in range(20)]
    *earlier, tonight = nights(*drifted)
    assert judge([tonight], earlier, RULE).state == "ok"
    production = nights(*drifted[:6], engine_digest="ee" * 32)
    assert judge([tonight], earlier, RULE, production=production).state == "slower"


def test_a_driver_that_changed_at_the_same_time_is_named() -> None:
    earlier = nights(*CALM, driver="560.35")
    verdict = judge([make_row(20, latency_ms_median=3.0, driver="580.95")], earlier, RULE)
    assert "the driver changed too: 560.35 -> 580.95" in verdict.because


def test_several_measurements_of_tonight_count_by_their_median() -> None:
    tonight = [make_row(20, latency_ms_median=value) for value in (2.0, 2.01, 30.0)]
    assert judge(tonight, nights(*CALM), RULE).state == "ok"


def test_of_several_batches_each_is_held_against_its_own_and_the_worst_counts() -> None:
    earlier = [*nights(*CALM), *nights(*(20 * value for value in CALM), batch=8)]
    calm = [make_row(20, latency_ms_median=2.0), make_row(20, latency_ms_median=40.0, batch=8)]
    assert judge(calm, earlier, RULE).state == "ok"
    slow = [calm[0], make_row(20, latency_ms_median=60.0, batch=8)]
    assert judge(slow, earlier, RULE).state == "slower"


def test_rows_of_tonight_and_later_are_no_baseline() -> None:
    tonight = make_row(4, latency_ms_median=3.0)
    later = nights(*CALM)
    verdict = judge([tonight], later, RULE)
    assert verdict.history is None


def test_a_walk_over_the_nights_says_the_same_as_judging_the_last() -> None:
    rows = nights(*CALM, 2.6)
    assert walk(rows, RULE)[-1] == (rows[-1].date, 2.6, "slower")
    assert walk(rows, RULE)[0][2] == "no-baseline"


def test_a_new_toolchain_starts_a_new_stretch() -> None:
    old = nights(*CALM, toolchain_build="10.9.0.34")
    new = [make_row(10 + i, latency_ms_median=3.0) for i in range(3)]
    assert {state for _, _, state in walk([*old, *new], RULE)[-3:]} == {"no-baseline"}


@given(
    st.lists(st.floats(0.01, 1000), min_size=5, max_size=14),
    st.floats(0.01, 1000),
    st.floats(0.001, 1000),
)
def test_the_verdict_does_not_depend_on_the_unit(
    earlier: list[float], now: float, factor: float
) -> None:
    scaled = baseline([value * factor for value in earlier], RULE)
    held = baseline(earlier, RULE)
    if abs(now / held.limit_ms - 1) > 1e-9 and scaled.median_ms:
        assert (classify(now, held, RULE) == "slower") is (
            classify(now * factor, scaled, RULE) == "slower"
        )


@given(st.lists(st.floats(0.5, 50), min_size=5, max_size=14))
def test_the_median_night_itself_is_always_ok(earlier: list[float]) -> None:
    held = baseline(earlier, RULE)
    assert classify(held.median_ms, held, RULE) == "ok"


def test_more_nights_needed_than_kept_is_refused() -> None:
    with pytest.raises(ValidationError, match="raise `nights`, or lower `min_nights`"):
        Regression(nights=3, min_nights=4)
