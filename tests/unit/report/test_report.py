"""What the page says; how it looks in a browser is in tests/browser/test_report_page.py."""

from __future__ import annotations

import datetime as dt
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_manifest import make_manifest
from sample_rows import NIGHT, make_row

from enginefarm.report import assemble, charts, render, svg
from enginefarm.report.model import CellState, ReportData, WantedCell
from enginefarm.report.nightly import with_manifests
from enginefarm.tables.from_manifest import not_built, rows_from_manifest
from enginefarm.tables.rows import BenchmarkRow

EVIL = "<script>alert(1)</script>\"'&"


def assembled(rows: list[BenchmarkRow], **more: object) -> ReportData:
    return assemble(rows, title="Farm", store="s3://bucket", **more)  # type: ignore[arg-type]


def state(rows: list[BenchmarkRow], **more: object) -> CellState:
    return assembled(rows, **more).models[0].cells["t4", "fp16"].state


def wanted(**changes: str) -> WantedCell:
    return WantedCell(**{"recipe": "minilm", "gpu": "t4", "precision": "fp16", **changes})


def failed(reason: str, night: int = 0) -> BenchmarkRow:
    return not_built(
        recipe="minilm",
        gpu="t4",
        precision="fp16",
        toolchain="tensorrt",
        outcome="failed",
        reason=reason,
        night=NIGHT + dt.timedelta(days=night),
        writer="w",
    )


def test_the_state_of_a_cell() -> None:
    built = make_row(outcome="built", latency_ms_median=None)
    assert state([built]) == "built"
    assert state([make_row(device_verification="pending")]) == "built"
    assert state([make_row(device_verification="passed")]) == "verified"
    assert state([make_row(device_verification="failed", reason="NaN")]) == "failed"
    assert state([make_row(), failed("ParseError")]) == "failed"
    assert state([], wanted=[wanted()]) == "missing"
    assert state([], wanted=[wanted(skip_reason="t4 has no bf16")]) == "skipped"
    assert state([make_row()], wanted=[wanted(spec_digest="00" * 32)]) == "stale"
    assert state([make_row()], wanted=[wanted(spec_digest="ab" * 32)]) == "built"


def test_an_engine_of_an_older_toolchain_than_others_is_stale_and_says_which() -> None:
    other = make_row(gpu="l4", toolchain_build="10.17.0.2")
    cell = assembled([make_row(device_verification="passed"), other]).models[0].cells["t4", "fp16"]
    assert cell.state == "stale"
    assert "10.17.0.2 is in use" in cell.reason


def test_figures_come_from_whichever_row_of_the_engine_has_them() -> None:
    built = make_row(outcome="built", latency_ms_median=None, size_bytes=7_000_000)
    measured = make_row(1, device_verification="passed", size_bytes=None)
    row = assembled([built, measured]).models[0].cells["t4", "fp16"].row
    assert row is not None
    assert (row.size_bytes, row.latency_ms_median) == (7_000_000, 2.0)


def test_another_engines_figures_are_not_borrowed() -> None:
    old = make_row(size_bytes=7_000_000, engine_digest="00" * 32)
    row = assembled([old, make_row(1, size_bytes=None)]).models[0].cells["t4", "fp16"].row
    assert row is not None
    assert row.size_bytes is None


def test_engines_that_no_row_speaks_of_come_from_their_manifests_once() -> None:
    known, silent = make_manifest(), make_manifest(label="l4")
    rows = with_manifests(rows_from_manifest(known), [known, silent])
    assert sorted(row.gpu or "" for row in rows) == ["l4", "t4"]


def test_every_text_from_outside_is_escaped() -> None:
    rows = [
        make_row(host_class=EVIL, gpu=None, runtime="pytorch", engine_digest=None),
        make_row(1, host_class=EVIL, gpu=None, runtime="pytorch", engine_digest=None),
        make_row(toolchain_build=EVIL, profile=EVIL, harness=EVIL),
        failed(EVIL, 2),
    ]
    data = assemble(rows, title=EVIL, store=EVIL, notes=[EVIL])
    page = render(data)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.count("<script>") == 1
    well_formed(page)


def test_the_page_refers_to_nothing_outside_itself() -> None:
    page = render(assembled([make_row(i) for i in range(8)]))
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page)
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_an_empty_store_gives_a_page_that_says_nothing_is_wrong() -> None:
    page = render(assembled([]))
    assert "Nothing: no engine got slower, and none failed." in page
    well_formed(page)


def test_one_cause_on_several_gpus_is_one_line() -> None:
    rows = [failed("ParseError: node /up").model_copy(update={"gpu": gpu}) for gpu in ("t4", "l4")]
    page = render(assembled(rows))
    attention = page.split('<section id="matrix"')[0]
    assert attention.count("ParseError: node /up") == 1
    assert "t4 fp16, l4 fp16" in attention


def test_a_slower_night_is_listed_with_its_ratio() -> None:
    rows = [make_row(i) for i in range(8)] + [make_row(9, latency_ms_median=3.0)]
    data = assembled(rows)
    assert [line.regressed for line in data.models[0].lines] == [True]
    assert "3.00 ms against 2.00 ms over the nights before (× 1.50)" in render(data)


def test_charts_are_well_formed_and_carry_their_figures() -> None:
    rows = [
        make_row(
            i,
            batch=batch,
            latency_ms_median=batch * 1.5,
            throughput_samples_per_s=600.0 + batch,
            relative_l2_max=0.01,
            size_bytes=5_000_000,
            build_seconds=100.0,
        )
        for i in range(3)
        for batch in (1, 8)
    ]
    page = render(assembled(rows))
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(charts) == 6
    for chart in charts:
        ET.fromstring(chart)
    for figure in ("1.50 ms", "5.00 MB", "1.7 min", "p99 2.40 ms"):
        assert figure in page


def test_a_stray_p99_does_not_flatten_the_bars_and_unstable_timings_say_so() -> None:
    rows = [
        make_row(latency_ms_p99=400.0, cov_verdict="unstable"),
        make_row(runtime="onnxruntime-cuda", latency_ms_median=4.0, engine_digest=None),
    ]
    chart = re.findall(r"<svg.*?</svg>", render(assembled(rows)), re.DOTALL)[0]
    widths = [float(bar.attrib["width"]) for bar in ET.fromstring(chart).iter("rect")]
    assert max(widths) > 100
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.01)
    assert "2.00 ms  unstable" in chart


def test_losing_nothing_is_not_a_minus_zero() -> None:
    assert charts.points_lost(0.0) == "0.00 pt"
    assert charts.points_lost(-0.001) == "0.00 pt"
    assert charts.points_lost(1.5) == "-1.50 pt"


@given(st.floats(1e-9, 1e9))
def test_a_figure_shown_is_the_figure_to_three_digits(value: float) -> None:
    shown = float(svg.number(value).replace(",", ""))
    assert shown == pytest.approx(value, rel=0.01, abs=1e-6)


@given(
    st.lists(
        st.tuples(st.integers(0, 400), st.floats(1e-6, 1e6)),
        min_size=2,
        max_size=40,
        unique_by=lambda point: point[0],
    )
)
def test_a_history_stays_inside_its_frame(points: list[tuple[int, float]]) -> None:
    drawn = svg.history(
        [svg.HistoryPoint(d, v, "ok", "") for d, v in sorted(points)], tone="p-fp16"
    )
    for circle in ET.fromstring(drawn).iter("circle"):
        assert 0 <= float(circle.attrib["cx"]) <= 300
        assert 0 <= float(circle.attrib["cy"]) <= 84


def well_formed(page: str) -> None:
    """Every element that is opened is closed, in order."""
    void = {"meta", "input", "br"}
    open_now: list[str] = []

    class Check(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in void:
                open_now.append(tag)

        def handle_startendtag(self, tag: str, attrs: object) -> None:
            pass

        def handle_endtag(self, tag: str) -> None:
            assert open_now.pop() == tag

    Check().feed(page)
    assert not open_now
