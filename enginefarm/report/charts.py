"""Which figures go into which chart of a model's section."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from enginefarm.names import RUNTIMES
from enginefarm.report import svg
from enginefarm.report.assemble import host_of, usual_shape
from enginefarm.report.model import Cell, HistoryLine, ModelSection
from enginefarm.report.svg import number, power
from enginefarm.tables import layer_diff
from enginefarm.tables.rows import BenchmarkRow

MAX_TRACKS = 10
LAYERS_SHOWN = 20
layer_cells = layer_diff.cells


def tone(row: BenchmarkRow | HistoryLine) -> str:
    """CSS class: engines by precision, what they are compared with in greys."""
    return f"p-{row.precision}" if RUNTIMES[row.runtime].bindings else f"r-{row.runtime}"


def side_by_side(model: ModelSection) -> list[tuple[str, str]]:
    """(host, chart) for each host: every runtime at the shape that most of them have."""
    by_host: defaultdict[str, list[BenchmarkRow]] = defaultdict(list)
    for row in model.latest:
        by_host[host_of(row)].append(row)
    charts: list[tuple[str, str]] = []
    for host, rows in by_host.items():
        profile, batch, _ = usual_shape(rows)
        alike = [row for row in rows if (row.profile, row.batch) == (profile, batch)]
        slowest = max((row.latency_ms_median or 0.0) for row in alike)
        items = [
            svg.Bar(
                label=f"{RUNTIMES[row.runtime].title} {row.precision}"
                + (" graph" if row.cuda_graph else ""),
                value=row.latency_ms_median or 0.0,
                to=row.latency_ms_p99,
                text=f"{number(row.latency_ms_median or 0.0)} ms"
                + (
                    "  unstable"
                    if row.cov_verdict == "unstable"
                    else _times(slowest, row.latency_ms_median or 0.0)
                ),
                doubtful=row.cov_verdict == "unstable",
                tone=tone(row),
                title=_timing(row),
            )
            for row in alike
        ]
        charts.append((f"{host}, batch {batch}", svg.bars(items, label_width=204)))
    return charts


def _times(slowest: float, value: float) -> str:
    ratio = slowest / value if value else 1
    return f"  {ratio:.1f}×" if ratio >= 1.05 else ""


def _timing(row: BenchmarkRow) -> str:
    parts = [
        f"{RUNTIMES[row.runtime].title} {row.precision}, {host_of(row)}, batch {row.batch}",
        f"median {number(row.latency_ms_median or 0.0)} ms",
    ]
    if row.latency_ms_p99 is not None:
        parts.append(f"p99 {number(row.latency_ms_p99)} ms")
    if row.throughput_samples_per_s:
        parts.append(f"{number(row.throughput_samples_per_s)} samples/s")
    if row.cov_verdict == "unstable":
        parts.append("unstable timings")
    return "; ".join(parts)


def throughput(model: ModelSection) -> str:
    """Latency against throughput over batches: a track for each engine.

    Where no engine was measured, the runtimes that were.
    """
    measured = [row for row in model.latest if row.throughput_samples_per_s]
    shown = [row for row in measured if RUNTIMES[row.runtime].bindings] or measured
    plain = [row for row in shown if not row.cuda_graph]
    groups: defaultdict[str, list[BenchmarkRow]] = defaultdict(list)
    for row in plain or shown:
        place = row.gpu or ("" if RUNTIMES[row.runtime].bindings else RUNTIMES[row.runtime].title)
        groups[f"{place} {row.precision}"].append(row)
    tracks = [
        svg.Track(
            name=name,
            tone=tone(rows[0]),
            dots=tuple(
                svg.Dot(
                    x=row.latency_ms_median or 0.0,
                    y=row.throughput_samples_per_s or 0.0,
                    tone=tone(row),
                    title=_timing(row),
                )
                for row in sorted(rows, key=lambda row: row.batch)
            ),
        )
        for name, rows in groups.items()
    ]
    best = sorted(tracks, key=lambda track: -max(dot.y for dot in track.dots))[:MAX_TRACKS]
    return svg.scatter(best, x_name="median latency, ms", y_name="samples / s")


def accuracy(model: ModelSection) -> str:
    """Relative L2 of the worst output against FP32, a row for each precision."""
    rows: defaultdict[str, list[svg.Dot]] = defaultdict(list)
    for cell in model.engines:
        found = cell.row.relative_l2_max if cell.row else None
        if found is not None and found > 0:
            rows[cell.precision].append(
                svg.Dot(
                    x=found, y=0, tone=f"p-{cell.precision}", title=f"{cell.gpu}: {power(found)}"
                )
            )
    named = [
        (f"{precision} ({len(dots)} GPU{'s' if len(dots) > 1 else ''})", dots)
        for precision, dots in rows.items()
    ]
    return svg.dots(named, x_name="relative L2 of the worst output against FP32")


def sizes(model: ModelSection) -> str:
    return _engine_bars(model, "size_bytes", lambda value: f"{number(value / 1e6)} MB")


def build_times(model: ModelSection) -> str:
    return _engine_bars(model, "build_seconds", duration)


def _engine_bars(model: ModelSection, column: str, show: Callable[[float], str]) -> str:
    def bar(cell: Cell) -> svg.Bar | None:
        value: float | None = getattr(cell.row, column)
        if value is None:
            return None
        words = show(value)
        return svg.Bar(f"{cell.gpu} {cell.precision}", value, words, f"p-{cell.precision}")

    made = (bar(cell) for cell in model.engines)
    return svg.bars([one for one in made if one is not None], label_width=110)


def points_lost(drop: float) -> str:
    """Top-1 against FP32, in points; never a minus zero."""
    return "0.00 pt" if abs(drop) < 0.005 else f"{-drop:+.2f} pt"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{number(seconds)} s"
    return f"{seconds / 60:,.1f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def history(line: HistoryLine) -> str:
    words = {
        "slower": "slower than the nights before",
        "faster": "faster than the nights before",
        "unstable": "unstable timings, no verdict",
        "no-baseline": "too few earlier nights for a verdict",
        "ok": "as before",
    }
    points = [
        svg.HistoryPoint(
            day=night.toordinal(),
            value=latency,
            state=state,
            title=f"{night}: {number(latency)} ms, {words[state]}",
        )
        for night, latency, state in line.points
    ]
    return svg.history(points, tone=tone(line))
