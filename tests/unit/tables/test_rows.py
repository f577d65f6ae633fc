from __future__ import annotations

import datetime as dt

import pytest
from pydantic import ValidationError
from sample_manifest import make_manifest
from sample_rows import NIGHT, make_row

from enginefarm.documents.comparing import OutputComparison
from enginefarm.documents.manifest import DeviceVerification
from enginefarm.tables.from_manifest import not_built, rows_from_manifest, verification_columns
from enginefarm.tables.rows import ALIKE, BenchmarkRow, comparable


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gpu", "l4"),
        ("runtime", "onnxruntime-cuda"),
        ("precision", "int8"),
        ("toolchain_build", "10.17.0.1"),
        ("host_class", "x86_64, 64 CPUs"),
        ("batch", 8),
        ("profile", "long"),
        ("harness_flags", "streams=2"),
        ("cuda_graph", True),
        ("clocks_locked", True),
        ("power_limit_w", 60.0),
        ("power_state", "P8"),
        ("throttle_reasons", "sw_power_cap"),
    ],
)
def test_rows_that_differ_in_what_matters_are_not_compared_and_the_reason_names_it(
    field: str, value: object
) -> None:
    words = dict(ALIKE)[field]
    reason = comparable(make_row(), make_row(1, **{field: value}))
    assert reason is not None
    assert reason.startswith(f"{words} differs")
    assert comparable(make_row(), make_row(1, **{field: value}), across=[field]) is None


def test_host_noise_does_not_hinder_a_comparison() -> None:
    other = make_row(1, host="elsewhere", writer="w2", driver="560", engine_digest="ef" * 32)
    assert comparable(make_row(), other) is None


def test_a_row_without_timings_is_compared_with_nothing() -> None:
    built = make_row(outcome="built", latency_ms_median=None)
    assert comparable(built, make_row()) == comparable(make_row(), built) == "not measured"


@pytest.mark.parametrize(("mhz", "alike"), [(1500.0, True), (1440.0, True), (1300.0, False)])
def test_median_clocks_further_apart_than_noise_are_two_power_states(
    mhz: float, alike: bool
) -> None:
    reason = comparable(make_row(sm_clock_mhz=1500.0), make_row(1, sm_clock_mhz=mhz))
    assert (reason is None) is alike


def test_a_manifest_gives_a_built_row_with_its_size_build_and_worst_figures() -> None:
    manifest = make_manifest(label="l4")
    (row,) = rows_from_manifest(manifest, night=NIGHT, writer="w1")
    assert (row.date, row.writer, row.gpu, row.outcome) == (NIGHT, "w1", "l4", "built")
    assert row.engine_digest == manifest.engine.digest
    assert row.size_bytes == manifest.engine.size_bytes
    assert row.build_seconds == manifest.build.seconds
    assert row.verified_on == "graph"
    assert row.latency_ms_median is None


def test_the_worst_output_is_shown_and_losing_top1_is_a_drop() -> None:
    good = OutputComparison(output="a", cosine=0.999, max_abs=0.1, relative_l2=0.01)
    bad = OutputComparison(
        output="b",
        cosine=0.9,
        max_abs=0.05,
        relative_l2=0.3,
        top1_agreement=0.97,
        top1_accuracy=0.90,
        reference_top1_accuracy=0.92,
    )
    columns = verification_columns((good, bad))
    assert columns["cosine_min"] == 0.9
    assert columns["max_abs"] == 0.1
    assert columns["relative_l2_max"] == 0.3
    assert columns["top1_drop_points"] == pytest.approx(2)


def test_an_engine_that_failed_on_its_gpu_is_a_failed_row() -> None:
    manifest = make_manifest()
    failed = DeviceVerification(status="failed", gpu="Tesla T4", reason="NaN in output logits")
    (row,) = rows_from_manifest(manifest.model_copy(update={"device_verification": failed}))
    assert (row.outcome, row.reason, row.device_verification) == (
        "failed",
        "NaN in output logits",
        "failed",
    )


def test_a_very_long_reason_is_cut_not_refused() -> None:
    row = not_built(
        recipe="minilm",
        gpu="t4",
        precision="fp16",
        toolchain="tensorrt",
        outcome="failed",
        reason="x" * 9000,
        night=NIGHT,
        writer="w",
    )
    assert len(row.reason) == 2000


def test_a_row_with_an_unknown_column_or_an_infinite_latency_is_refused() -> None:
    with pytest.raises(ValidationError, match="latency_s"):
        make_row(latency_s=1)
    with pytest.raises(ValidationError, match="finite"):
        make_row(latency_ms_median=float("inf"))


def test_one_value_has_one_id_and_any_change_another() -> None:
    assert make_row().row_id == make_row().row_id
    changed = [make_row(latency_ms_median=2.1), make_row(writer="w2"), make_row(1)]
    assert len({row.row_id for row in [make_row(), *changed]}) == 4


def test_every_column_of_the_issue_is_there() -> None:
    wanted = {
        *("recipe", "spec_digest", "engine_digest", "gpu", "precision", "toolchain_build"),
        *("profile", "batch", "harness_flags", "throughput_samples_per_s", "cov_verdict"),
        *(f"latency_ms_{name}" for name in ("min", "mean", "median", "p90", "p95", "p99")),
        *("sm_clock_mhz", "power_w", "cosine_min", "size_bytes", "build_seconds", "date"),
        "host_class",
    }
    assert wanted <= set(BenchmarkRow.model_fields)
    assert isinstance(make_row().date, dt.date)
