"""Benchmark rows -> what the report shows."""

from __future__ import annotations

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from enginefarm.documents.gpus import table as gpu_table
from enginefarm.documents.thresholds import Regression
from enginefarm.documents.versions import version_tuple
from enginefarm.names import PRECISION_NAMES, RUNTIMES
from enginefarm.report.model import Cell, HistoryLine, ModelSection, ReportData, WantedCell
from enginefarm.tables.regression import walk
from enginefarm.tables.rows import BenchmarkRow

RUNTIME_ORDER = tuple(RUNTIMES)
FIGURES = (
    "size_bytes",
    "build_seconds",
    "cosine_min",
    "relative_l2_max",
    "top1_agreement",
    "top1_accuracy",
    "top1_drop_points",
    "verified_on",
    "device_verification",
)
"""Columns that a later row of the same engine may lack: the newest value is shown."""

CellKey = tuple[str, str]


def assemble(
    rows: Sequence[BenchmarkRow],
    *,
    title: str,
    store: str,
    wanted: Iterable[WantedCell] = (),
    rules: Mapping[str, Regression] | None = None,
    notes: Sequence[str] = (),
) -> ReportData:
    """rows: oldest first. rules: by recipe; the default rule for the others."""
    by_recipe: defaultdict[str, list[BenchmarkRow]] = defaultdict(list)
    for row in rows:
        by_recipe[row.recipe].append(row)
    asked: defaultdict[str, dict[CellKey, WantedCell]] = defaultdict(dict)
    for one in wanted:
        asked[one.recipe][one.gpu, one.precision] = one
    newest = _newest_builds(rows)
    models = tuple(
        _model(recipe, by_recipe[recipe], asked[recipe], newest, (rules or {}).get(recipe))
        for recipe in sorted({*by_recipe, *asked})
    )
    gpus = {gpu for model in models for gpu, _ in model.cells}
    precisions = {precision for model in models for _, precision in model.cells}
    return ReportData(
        title=title,
        store=store,
        generated_at=dt.datetime.now(dt.UTC),
        night=max((row.date for row in rows), default=None),
        gpus=tuple(sorted(gpus, key=_gpu_order)),
        precisions=tuple(sorted(precisions, key=PRECISION_NAMES.index)),
        models=models,
        notes=tuple(notes),
    )


def _newest_builds(rows: Iterable[BenchmarkRow]) -> dict[str, str]:
    builds: dict[str, str] = {}
    for row in rows:
        if row.engine_digest and row.toolchain_build:
            known = builds.get(row.toolchain, "")
            builds[row.toolchain] = max(known, row.toolchain_build, key=version_tuple)
    return builds


def _model(
    recipe: str,
    rows: list[BenchmarkRow],
    asked: Mapping[CellKey, WantedCell],
    newest: Mapping[str, str],
    rule: Regression | None,
) -> ModelSection:
    by_cell: defaultdict[CellKey, list[BenchmarkRow]] = defaultdict(list)
    for row in rows:
        if row.gpu is not None and (row.engine_digest or row.outcome in ("failed", "skipped")):
            by_cell[row.gpu, row.precision].append(row)
    cells = {
        key: _cell(recipe, key, by_cell.get(key, []), asked.get(key), newest)
        for key in sorted({*by_cell, *asked}, key=lambda key: _order(key[0], key[1]))
    }
    return ModelSection(
        recipe=recipe,
        cells=cells,
        latest=_latest(rows),
        lines=_lines(rows, rule or Regression()),
    )


def _gpu_order(gpu: str) -> tuple[int, str]:
    """gpus.toml's order; labels that are not in it last."""
    known = [*gpu_table()]
    return (known.index(gpu) if gpu in known else len(known), gpu)


def _order(host: str, precision: str, runtime: str | None = None) -> tuple[object, ...]:
    of_runtime = () if runtime is None else (RUNTIME_ORDER.index(runtime),)
    return (*_gpu_order(host), *of_runtime, PRECISION_NAMES.index(precision))


def _cell(
    recipe: str,
    key: CellKey,
    rows: list[BenchmarkRow],
    asked: WantedCell | None,
    newest: Mapping[str, str],
) -> Cell:
    gpu, precision = key
    engines = [row for row in rows if row.engine_digest and row.outcome in ("built", "measured")]
    figures = _figures(engines)

    def cell(state: str, reason: str = "") -> Cell:
        return Cell(recipe, gpu, precision, state, reason, figures)  # type: ignore[arg-type]

    if asked is not None and asked.skip_reason:
        return cell("skipped", asked.skip_reason)
    if not rows:
        return cell("missing", "not built yet")
    last = rows[-1]
    if last.outcome == "skipped":
        return cell("skipped", last.reason)
    if last.outcome == "failed" or last.device_verification == "failed":
        return cell("failed", last.reason or "verification on the GPU failed")
    if asked is not None and asked.spec_digest not in (None, last.spec_digest):
        return cell(
            "stale", "the recipe, its model or its toolchain has changed since it was built"
        )
    if last.toolchain_build != newest.get(last.toolchain, last.toolchain_build):
        return cell(
            "stale",
            f"built with {last.toolchain} {last.toolchain_build}; "
            f"{newest[last.toolchain]} is in use elsewhere",
        )
    if figures is not None and figures.device_verification == "passed":
        return cell("verified")
    return cell("built", "not verified on its GPU yet")


def _figures(engines: list[BenchmarkRow]) -> BenchmarkRow | None:
    """The newest engine: its newest timing, and its other figures from whichever row has them."""
    if not engines:
        return None
    same = [row for row in engines if row.engine_digest == engines[-1].engine_digest]
    measured = [row for row in same if row.latency_ms_median is not None]
    shape = usual_shape(measured) if measured else None
    shown = [row for row in measured if shape_of(row) == shape] or same
    filled = {
        name: next((getattr(r, name) for r in reversed(same) if getattr(r, name) is not None), None)
        for name in FIGURES
    }
    return shown[-1].model_copy(update=filled)


Shape = tuple[str, int, bool]


def shape_of(row: BenchmarkRow) -> Shape:
    """Profile, batch, and whether a CUDA graph was used: timings of two never share a line."""
    return (row.profile, row.batch, bool(row.cuda_graph))


def usual_shape(rows: Iterable[BenchmarkRow]) -> Shape:
    """What most rows have; of equals the one without a CUDA graph, and the smallest batch."""
    counts = Counter(shape_of(row) for row in rows)
    return max(counts, key=lambda shape: (counts[shape], not shape[2], -shape[1]))


def host_of(row: BenchmarkRow) -> str:
    """GPU label, or what the CPU is."""
    return row.gpu or row.host_class or "cpu"


def _latest(rows: Iterable[BenchmarkRow]) -> tuple[BenchmarkRow, ...]:
    newest: dict[tuple[object, ...], BenchmarkRow] = {}
    for row in rows:
        if row.latency_ms_median is not None:
            newest[host_of(row), row.runtime, row.precision, shape_of(row)] = row

    def order(row: BenchmarkRow) -> tuple[object, ...]:
        return _order(host_of(row), row.precision, row.runtime), shape_of(row)

    return tuple(sorted(newest.values(), key=order))


def _engines(rows: Sequence[BenchmarkRow]) -> tuple[str | None, str | None]:
    """Spec digests of the newest night, and before it of the last night that came earlier."""
    newest = rows[-1]
    before = next((row for row in reversed(rows) if row.date < newest.date), None)
    return (before.spec_digest if before else None, newest.spec_digest)


def _lines(rows: Iterable[BenchmarkRow], rule: Regression) -> tuple[HistoryLine, ...]:
    """A line for each host × runtime × precision, at its most measured profile and batch."""
    groups: defaultdict[tuple[str, str, str], list[BenchmarkRow]] = defaultdict(list)
    for row in rows:
        if row.latency_ms_median is not None:
            groups[host_of(row), row.runtime, row.precision].append(row)
    lines: list[HistoryLine] = []
    for (host, runtime, precision), found in groups.items():
        usual = usual_shape(found)
        most = [row for row in found if shape_of(row) == usual]
        points = tuple(walk(most, rule))
        if len(points) > 1:
            lines.append(HistoryLine(host, runtime, precision, usual[1], points, _engines(most)))
    return tuple(sorted(lines, key=lambda one: _order(one.host, one.precision, one.runtime)))
