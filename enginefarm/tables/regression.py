"""Decides whether an engine got slower, by medians and spreads of comparable rows.

A night's figure is the median of its rows' median latencies. The baseline is the median
over the nights before, its spread 1.4826 × the median absolute deviation (the standard
deviation, for a normal distribution, that one bad night cannot move). The rule is the
recipe's `regression`. Unstable timings get no verdict and are not part of a baseline. How often
the verdict is wrong: `benchmarks/regression.py`.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Literal

from pydantic import Field

from enginefarm.documents.thresholds import Regression
from enginefarm.schema import Frozen
from enginefarm.tables.clocks import clocks_differ
from enginefarm.tables.rows import ALIKE, BenchmarkRow, comparable

MAD_TO_SIGMA = 1.4826
CROUX_ROUSSEEUW = (1.196, 1.495, 1.363, 1.206, 1.200, 1.140, 1.129, 1.107)
"""Factors for 2 to 9 values."""

State = Literal["ok", "slower", "faster", "unstable", "no-baseline"]


class Baseline(Frozen):
    """What a timing is compared with."""

    nights: int
    median_ms: float
    spread_ms: float
    limit_ms: float = Field(description="Above it, a timing is a regression.")


class Judgement(Frozen):
    """state `slower`: a regression, against the history, the production engine, or both."""

    state: State
    latency_ms: float | None = None
    history: Baseline | None = None
    production: Baseline | None = None
    because: str = ""
    left_out: tuple[str, ...] = Field(
        default=(), description="Why rows were not compared, each with how many."
    )

    @property
    def ratio(self) -> float | None:
        """Tonight over the baseline; above 1 is slower."""
        held = self.history or self.production
        return self.latency_ms / held.median_ms if held and self.latency_ms else None


def baseline(earlier: Sequence[float], rule: Regression) -> Baseline:
    """The baseline of at least one figure, one for each night, in milliseconds."""
    middle = median(earlier)
    deviation = median([abs(value - middle) for value in earlier])
    spread = MAD_TO_SIGMA * _small_sample(len(earlier)) * deviation
    return Baseline(
        nights=len(earlier),
        median_ms=middle,
        spread_ms=spread,
        limit_ms=max(rule.latency_ratio * middle, middle + rule.spreads * spread),
    )


def _small_sample(nights: int) -> float:
    """The MAD of few values is too small on average: Croux and Rousseeuw 1992, table 2."""
    if nights > len(CROUX_ROUSSEEUW) + 1:
        return nights / (nights - 0.8)
    return CROUX_ROUSSEEUW[nights - 2] if nights > 1 else 1.0


def classify(latency_ms: float, held: Baseline, rule: Regression) -> State:
    """One figure against a baseline."""
    if latency_ms > held.limit_ms:
        return "slower"
    lower = min(held.median_ms / rule.latency_ratio, held.median_ms - rule.spreads * held.spread_ms)
    return "faster" if latency_ms < lower else "ok"


def judge(
    tonight: Sequence[BenchmarkRow],
    earlier: Iterable[BenchmarkRow],
    rule: Regression,
    *,
    production: Iterable[BenchmarkRow] = (),
) -> Judgement:
    """The verdict on tonight's rows; of several batches or profiles, the worst.

    tonight:    measurements; those that are alike count together, by their median.
    earlier:    rows of other nights; those that are not alike are left out, with the reason.
    production: rows of the engine that the production channel names. Those of tonight count
                by themselves; else its earlier nights do, as `earlier` does.
    """
    alike: defaultdict[tuple[object, ...], list[BenchmarkRow]] = defaultdict(list)
    for row in tonight:
        if row.latency_ms_median is not None:
            alike[_conditions(row)].append(row)
    if not alike:
        return Judgement(state="no-baseline", because="nothing was measured tonight")
    earlier, production = tuple(earlier), tuple(production)
    verdicts = [_judge(rows, earlier, rule, production) for rows in alike.values()]
    return min(verdicts, key=lambda verdict: WORST_FIRST.index(verdict.state))


WORST_FIRST: tuple[State, ...] = ("slower", "unstable", "no-baseline", "ok", "faster")


def _judge(
    tonight: Sequence[BenchmarkRow],
    earlier: Sequence[BenchmarkRow],
    rule: Regression,
    production: Sequence[BenchmarkRow],
) -> Judgement:
    row, now = tonight[0], median([one.latency_ms_median or 0.0 for one in tonight])
    left_out: Counter[str] = Counter()
    before = _comparable_rows(row, earlier, left_out)
    channel = _comparable_rows(row, production, left_out)
    nights = _nights(before, until=row.date)
    side_by_side = [one.latency_ms_median or 0.0 for one in channel if one.date == row.date]
    verdict = Judgement(
        state="no-baseline",
        latency_ms=now,
        history=_baseline_of(nights, rule),
        production=baseline(side_by_side, rule)
        if side_by_side
        else _baseline_of(_nights(channel, until=row.date), rule),
        left_out=tuple(f"{count} × {reason}" for reason, count in left_out.most_common()),
    )
    if all(one.cov_verdict == "unstable" for one in tonight):
        state, because = "unstable", "tonight's own timings were unstable: measure again"
    elif verdict.history is None and verdict.production is None:
        state, because = (
            "no-baseline",
            f"{len(nights)} nights are comparable, {rule.min_nights} are needed",
        )
    else:
        state, because = _conclude(verdict, now, rule)
    drivers = {one.driver for one in before[-rule.nights :]} - {row.driver}
    if state == "slower" and drivers:
        because += f"; the driver changed too: {', '.join(sorted(drivers))} -> {row.driver}"
    return verdict.model_copy(update={"state": state, "because": because})


def _baseline_of(nights: Sequence[float], rule: Regression) -> Baseline | None:
    last = nights[-rule.nights :]
    return baseline(last, rule) if len(last) >= rule.min_nights else None


def _conclude(verdict: Judgement, now: float, rule: Regression) -> tuple[State, str]:
    """Slower than either baseline is slower; faster than one, and not slower, is faster."""
    held = [
        (f"the last {verdict.history.nights} nights" if verdict.history else "", verdict.history),
        ("production", verdict.production),
    ]
    found: defaultdict[State, list[str]] = defaultdict(list)
    for words, base in held:
        if base is not None:
            found[classify(now, base, rule)].append(
                f"{now / base.median_ms:.2f} × {words} "
                f"({base.median_ms:.3g} ms, limit {base.limit_ms:.3g} ms)"
            )
    worst: tuple[State, ...] = ("slower", "faster")
    for state in worst:
        if found[state]:
            return state, "; ".join(found[state])
    return "ok", ""


def walk(rows: Iterable[BenchmarkRow], rule: Regression) -> list[tuple[dt.date, float, State]]:
    """Every night of one cell, each held against the nights before it: (night, ms, state).

    Rows that are not alike form stretches of their own, so a new toolchain starts again.
    """
    stretches: defaultdict[tuple[object, ...], list[BenchmarkRow]] = defaultdict(list)
    for row in rows:
        if row.latency_ms_median is not None:
            stretches[_conditions(row)].append(row)
    return sorted(point for stretch in stretches.values() for point in _walk(stretch, rule))


def _walk(rows: list[BenchmarkRow], rule: Regression) -> list[tuple[dt.date, float, State]]:
    by_night: defaultdict[dt.date, list[BenchmarkRow]] = defaultdict(list)
    for row in rows:
        by_night[row.date].append(row)
    out: list[tuple[dt.date, float, State]] = []
    seen: list[tuple[float, float | None]] = []
    for night in sorted(by_night):
        group = by_night[night]
        now = median([row.latency_ms_median or 0.0 for row in group])
        clock = group[0].sm_clock_mhz
        earlier = [ms for ms, mhz in seen if clocks_differ(clock, mhz) is None][-rule.nights :]
        state: State = "no-baseline"
        if all(row.cov_verdict == "unstable" for row in group):
            state = "unstable"
        elif len(earlier) >= rule.min_nights:
            state = classify(now, baseline(earlier, rule), rule)
        out.append((night, now, state))
        if state != "unstable":
            seen.append((now, clock))
    return out


def _conditions(row: BenchmarkRow) -> tuple[object, ...]:
    return tuple(getattr(row, field) for field, _ in ALIKE)


def _comparable_rows(
    row: BenchmarkRow, others: Iterable[BenchmarkRow], left_out: Counter[str]
) -> list[BenchmarkRow]:
    kept: list[BenchmarkRow] = []
    for other in others:
        reason = "unstable" if other.cov_verdict == "unstable" else comparable(row, other)
        if reason is None:
            kept.append(other)
        else:
            left_out[reason] += 1
    return kept


def _nights(rows: Iterable[BenchmarkRow], *, until: dt.date) -> list[float]:
    """One figure a night, oldest first, of the nights before `until`."""
    by_night: defaultdict[dt.date, list[float]] = defaultdict(list)
    for row in rows:
        if row.date < until and row.latency_ms_median is not None:
            by_night[row.date].append(row.latency_ms_median)
    return [median(by_night[night]) for night in sorted(by_night)]
