"""`enginefarm bench`: the benchmark tables on the command line."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from enginefarm.cli import completion
from enginefarm.cli.bench_slo import slo
from enginefarm.cli.options import (
    FiniteRange,
    gpu_option,
    gpus_option,
    nights_option,
    precision_option,
    precisions_filter,
    recipe_argument,
    runtimes_filter,
)
from enginefarm.cli.tables import figure, print_json, print_table
from enginefarm.errors import UsageError
from enginefarm.names import RUNTIMES
from enginefarm.store import open_store

if TYPE_CHECKING:
    from enginefarm.tables.tables import BenchmarkTables

SHOWN = (
    "date",
    "recipe",
    "gpu",
    "runtime",
    "precision",
    "batch",
    "outcome",
    "latency_ms_median",
    "latency_ms_p99",
    "throughput_samples_per_s",
    "cov_verdict",
    "cosine_min",
    "size_bytes",
    "build_seconds",
    "toolchain_build",
)
MEASURED = (
    "latency_ms_median",
    "latency_ms_p99",
    "compute_ms_median",
    "throughput_samples_per_s",
    "cov_verdict",
    "relative_l2_max",
)


@click.group()
def bench() -> None:
    """Run benchmarks and read their tables."""


bench.add_command(slo)


@bench.command("table")
@click.option("--recipe", multiple=True, help="Show only this recipe's (repeat).")
@gpus_option("Show only these GPUs' (repeat, or separate with commas).", "gpu")
@precisions_filter("Show only these precisions'.")
@runtimes_filter("Show only these runtimes'.")
@click.option("--since", metavar="DATE", help="The first night, such as 2026-11-01.")
@click.option("--until", metavar="DATE", help="The last night.")
@click.option("--columns", metavar="A,B,…", help="Show these columns, in this order.")
@click.option("--csv", "form", flag_value="csv", help="Print every column as CSV.")
@click.option("--markdown", "form", flag_value="markdown", help="Print a Markdown table.")
@click.option("--json", "form", flag_value="json", help="Print every column as JSON.")
def table_(columns: str | None, form: str | None, **filters: Any) -> None:
    """Show the benchmark rows of a range of nights, the oldest first."""
    from enginefarm.tables.filter import RowFilter

    where = RowFilter.of(**{name: value or None for name, value in filters.items()})
    chosen = tuple(columns.split(",")) if columns else None if form in ("csv", "json") else SHOWN
    found = _tables().read(where, chosen)
    names, rows = list(found.column_names), [list(row.values()) for row in found.to_pylist()]
    if form == "json":
        print_json(found.to_pylist())
    elif form == "csv":
        click.echo(_csv(names, rows), nl=False)
    elif form == "markdown":
        click.echo(_markdown(names, rows))
    else:
        texts = [[figure(value) for value in row] for row in rows]
        title = f"{len(rows):,} benchmark rows" if rows else "No benchmark rows"
        print_table(title, [_heading(name) for name in names], texts)


@bench.command("run")
@recipe_argument
@click.option(
    "--seconds",
    type=FiniteRange(0.01, 3600),
    default=3.0,
    show_default=True,
    help="Seconds for each runtime and shape.",
)
@click.option("--cpu", is_flag=True, help="Run on the CPU even if there is a GPU.")
@click.option(
    "--layers", is_flag=True, help="On a GPU: also time each engine's layers, for `diff`."
)
@click.option(
    "--trtexec",
    is_flag=True,
    help="On a GPU: also measure each engine as trtexec 11 does by default (CUDA graph, spin wait, "
    "no transfers).",
)
@click.option("--json", "as_json", is_flag=True, help="Print every column as JSON.")
def run_(
    recipe: Path, seconds: float, cpu: bool, layers: bool, trtexec: bool, as_json: bool
) -> None:
    """Time RECIPE on this machine: its runtimes take turns on the same inputs.

    On a GPU: PyTorch, ONNX Runtime with its CUDA and its TensorRT provider, and the engines
    that the store has for that GPU; without one, or with --cpu: PyTorch and ONNX Runtime. What
    is not installed is named and left out. The rows go into the tables.
    """
    from enginefarm.bench.harness import Harness
    from enginefarm.bench.on_cpu import CPU_HARNESS, benchmark_cpu
    from enginefarm.bench.on_gpu import benchmark_gpu, profile_engines
    from enginefarm.bench.queued import QueuedSettings, benchmark_queued
    from enginefarm.host.detect import first_gpu
    from enginefarm.recipes import file as recipe_file
    from enginefarm.store import site
    from enginefarm.tables.tables import BenchmarkTables

    loaded = recipe_file.load(recipe)  # before a store is started for it
    here = site.here()
    on_cpu = cpu or first_gpu() is None
    usual = CPU_HARNESS if on_cpu else Harness()
    harness = usual.model_copy(
        update={"min_seconds": seconds, "max_seconds": max(seconds, usual.max_seconds)}
    )
    if on_cpu and (layers or trtexec):
        option = "--layers" if layers else "--trtexec"
        raise UsageError(
            f"bench run {option}: it measures an engine on a GPU",
            why="this run is on the CPU",
            fix=f"leave out {option}, or run it on a machine that has the GPU",
        )
    if on_cpu:
        rows = [*benchmark_cpu(here, loaded, harness=harness)]
    else:
        found = benchmark_gpu(here, loaded, harness=harness)
        rows = found.rows
        if layers:
            found.left_out |= profile_engines(here, loaded)
        if trtexec:
            queued = benchmark_queued(here, loaded, QueuedSettings(seconds=seconds))
            rows += queued.rows
            found.left_out |= queued.left_out
        for name, why in found.left_out.items():
            click.echo(f"left out: {name}: {why}", err=True)
    BenchmarkTables(here.store.objects).append(rows)
    if as_json:
        print_json([row.model_dump(mode="json") for row in rows])
        return
    names = ("runtime", "precision", "shapes", *([] if on_cpu else ["cuda_graph"]), *MEASURED)
    texts = [[figure(getattr(row, name)) for name in names] for row in rows]
    where = rows[0].gpu_name or rows[0].host_class
    print_table(f"{rows[0].recipe} on {where}", [_heading(n) for n in names], texts)


@bench.command()
@click.argument("recipe", shell_complete=completion.engines)
@gpu_option("Show only this GPU's.")
@precision_option("Show only this precision's.")
@click.option("--runtime", type=click.Choice(tuple(RUNTIMES)), help="Show only this runtime's.")
@nights_option("How many nights to show.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def history(recipe: str, nights: int, as_json: bool, **filters: str | None) -> None:
    """Show RECIPE's latencies night by night.

    Each night is compared with the nights before it.
    """
    import datetime as dt

    from enginefarm.report.assemble import assemble
    from enginefarm.report.render import REPORT_COLUMNS
    from enginefarm.store.channels import named
    from enginefarm.tables.filter import RowFilter
    from enginefarm.tables.rules import recorded
    from enginefarm.tables.tables import BenchmarkTables

    since = dt.datetime.now(dt.UTC).date() - dt.timedelta(days=nights)
    where = RowFilter.of(recipe=named(recipe), since=since, **filters)
    store = open_store()
    models = assemble(
        BenchmarkTables(store.objects).rows(where, REPORT_COLUMNS),
        title="",
        store=store.url,
        rules={recipe: recorded(store, recipe)},
    ).models
    found = [
        {
            "date": str(night),
            "host": line.host,
            "runtime": line.runtime,
            "precision": line.precision,
            "batch": line.batch,
            "latency_ms": latency,
            "verdict": state,
        }
        for model in models
        for line in model.lines
        for night, latency, state in line.points
    ]
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo(f"No history of {recipe}: it takes two nights")
        return
    styles = [{"slower": "red", "faster": "green"}.get(str(row["verdict"]), "") for row in found]
    rows = [[figure(value) for value in row.values()] for row in found]
    header = [_heading(name) for name in found[0]]
    print_table(f"{recipe} over the last {nights} nights", header, rows, styles)


@bench.command()
@click.option(
    "--before", metavar="DATE", help="Merge the nights before this one; today by default."
)
def compact(before: str | None) -> None:
    """Merge each past night's files into one, so that long queries stay fast."""
    import datetime as dt

    from enginefarm.tables.filter import RowFilter

    end = RowFilter.of(until=before).until or dt.datetime.now(dt.UTC).date()
    tables = _tables()
    nights = [night for night in tables.nights() if night < end]
    replaced = sum(tables.compact(night) for night in nights)
    click.echo(f"{replaced} files of {len(nights)} nights merged")


def _tables() -> BenchmarkTables:
    from enginefarm.tables.tables import BenchmarkTables

    return BenchmarkTables(open_store().objects, tolerant=True)


def _heading(name: str) -> str:
    return name.replace("_", " ")


def _csv(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    return sink.getvalue()


def _markdown(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [f"| {' | '.join(map(_heading, names))} |", f"|{'---|' * len(names)}"]
    for row in rows:
        cells = (figure(value).replace("|", "\\|").replace("\n", " ") for value in row)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
