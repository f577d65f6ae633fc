"""ReportData -> one HTML page that needs no network, no script and no font from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

from enginefarm.report import charts, engines, frontier
from enginefarm.report.assemble import FIGURES
from enginefarm.report.model import STATES, ReportData
from enginefarm.report.svg import number, power
from enginefarm.tables.rows import ALIKE

REPORT_COLUMNS: tuple[str, ...] = tuple(
    dict.fromkeys(
        (
            "date",
            "measured_at",
            "outcome",
            "reason",
            *(field for field, _ in ALIKE),
            "driver",
            "spec_digest",
            "engine_digest",
            "latency_ms_median",
            "latency_ms_p99",
            "throughput_samples_per_s",
            "cov_verdict",
            "sm_clock_mhz",
            *FIGURES,
        )
    )
)
"""What `assemble` needs of a row: reading less makes a long history quick."""

OPEN_UP_TO = 6
"""So many models are shown unfolded; of more, only those that need attention."""


def render(data: ReportData) -> str:
    """The page. Every text from outside is escaped; the page's own policy forbids loading."""
    template = _environment().get_template("report.html.j2")
    script = _asset("report.js")
    return template.render(
        data=data,
        states=STATES,
        charts=charts,
        frontier=frontier,
        engines=engines,
        engine_pages=engines.pages(data.models, data.manifests, data.engine_layers),
        number=number,
        power=power,
        style=_asset("report.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        open_all=len(data.models) <= OPEN_UP_TO,
        totals=_totals(data),
    )


def _totals(data: ReportData) -> dict[str, float]:
    rows = {
        cell.row.engine_digest: cell.row
        for model in data.models
        for cell in model.engines
        if cell.row is not None
    }
    return {
        "build_seconds": sum(row.build_seconds or 0 for row in rows.values()),
        "size_bytes": sum(row.size_bytes or 0 for row in rows.values()),
        "regressions": sum(len(model.regressions) for model in data.models),
        "engines": len(rows),
    }


@cache
def _asset(name: str) -> str:
    return (files("enginefarm.report") / "templates" / name).read_text("utf-8")


@cache
def _environment() -> Any:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    return Environment(
        loader=FunctionLoader(_asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
