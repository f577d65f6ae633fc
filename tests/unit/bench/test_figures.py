from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginefarm.bench.harness import figures

TIMES = st.lists(st.floats(0.001, 1e4), min_size=1, max_size=300)


@given(TIMES)
def test_percentiles_are_numpys_over_all_samples(samples: list[float]) -> None:
    found = figures(samples)
    for name, percent in (("ms_median", 50), ("ms_p90", 90), ("ms_p95", 95), ("ms_p99", 99)):
        assert getattr(found, name) == pytest.approx(np.percentile(samples, percent))
    assert found.ms_mean == pytest.approx(np.mean(samples))
    assert found.cov == pytest.approx(np.std(samples) / np.mean(samples), abs=1e-9)
    assert found.samples == len(samples)


def test_one_slow_pass_in_a_hundred_shows_in_p99_and_not_in_the_median() -> None:
    found = figures([1.0] * 99 + [100.0])
    assert found.ms_median == 1.0
    assert found.ms_p99 > 1.5
    assert found.verdict == "unstable"
    assert figures([1.0, 1.01, 0.99]).verdict == "stable"


def test_no_samples() -> None:
    with pytest.raises(ValueError, match="no samples"):
        figures([])
