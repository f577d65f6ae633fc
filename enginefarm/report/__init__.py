"""The report: one self-contained HTML page out of the benchmark tables."""

from __future__ import annotations

from enginefarm.report.assemble import assemble
from enginefarm.report.render import REPORT_COLUMNS, render

__all__ = ["REPORT_COLUMNS", "assemble", "render"]
