"""Which engines of a GPU are worth a look, and how each of them is got."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

from sample_manifest import make_manifest
from sample_rows import NIGHT, make_row

from enginefarm.report import assemble, render
from enginefarm.report.frontier import FrontierPoint, chart, frontier
from enginefarm.tables.rows import BenchmarkRow


def row(precision: str, ms: float, error: float, **more: Any) -> BenchmarkRow:
    digest = precision.encode().hex().ljust(64, "0")
    fields: dict[str, Any] = {
        "precision": precision,
        "latency_ms_median": ms,
        "relative_l2_max": error,
    }
    return make_row(NIGHT, **{"engine_digest": digest, "spec_digest": digest, **fields, **more})


def places(*rows: BenchmarkRow) -> dict[str, list[FrontierPoint]]:
    return frontier(assemble([*rows], title="", store="").models[0])


def beaten(*rows: BenchmarkRow) -> dict[str, str]:
    return {one.precision: one.beaten_by for found in places(*rows).values() for one in found}


def test_what_is_slower_and_less_accurate_is_dominated() -> None:
    found = beaten(row("fp32", 4.0, 0.0), row("fp16", 2.0, 0.01), row("int8", 2.5, 0.1))
    assert found == {"fp16": "", "int8": "fp16", "fp32": ""}


def test_equal_figures_dominate_neither() -> None:
    assert beaten(row("fp16", 2.0, 0.01), row("bf16", 2.0, 0.01)) == {"fp16": "", "bf16": ""}


def test_a_mix_that_the_search_found_is_called_one() -> None:
    int8 = make_manifest(precision="int8")
    kept = [{"node": f"n{index}", "op_type": "Conv", "reason": "budget"} for index in range(3)]
    build = int8.build.model_copy(update={"details": {"precision": {"kept_wide": kept}}})
    mix = int8.model_copy(update={"build": build})
    rows = [row("fp16", 2.0, 0.01), row("int8", 1.0, 0.1, spec_digest=mix.spec_digest)]
    model = assemble(rows, title="", store="").models[0]
    (found,) = frontier(model, {mix.spec_digest: mix}).values()
    words = {one.precision: one.words for one in found}
    assert "t4 int8, a mix with 3 nodes in more bits: 1.00 ms" in words["int8"]
    assert "mix" not in words["fp16"]


def test_gpus_are_kept_apart_and_one_engine_is_no_frontier() -> None:
    assert places(row("fp16", 2.0, 0.01), row("int8", 1.0, 0.1, gpu="l4")) == {}


def test_what_was_not_measured_alike_or_stably_has_no_place() -> None:
    alike = (row("fp32", 4.0, 0.0), row("fp16", 2.0, 0.01))
    assert "int8" not in beaten(*alike, row("int8", 0.1, 0.0, harness="enginefarm/0"))
    assert "int8" not in beaten(*alike, row("int8", 0.1, 0.0, cov_verdict="unstable"))
    assert "int8" not in beaten(*alike, row("int8", 0.1, 0.0, batch=8))


def test_the_page_has_the_plot_and_a_command_for_each_dot() -> None:
    rows = [row("fp32", 4.0, 0.0), row("fp16", 2.0, 0.01), row("int8", 2.5, 0.1)]
    page = render(assemble(rows, title="", store=""))
    assert "Accuracy and latency: t4" in page
    for precision in ("fp32", "fp16", "int8"):
        assert f"enginefarm pull minilm --gpu t4 --precision {precision}</code>" in page
    assert "dominated by fp16" in page
    (found,) = places(*rows).values()
    assert len(ET.fromstring(chart(found)).findall(".//circle")) == 3
