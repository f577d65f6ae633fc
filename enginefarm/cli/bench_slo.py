"""`enginefarm bench slo`: the highest rate of requests at which p99 keeps a limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from enginefarm.cli.options import FiniteRange, precision_option, recipe_argument
from enginefarm.cli.tables import figure, print_json, print_table
from enginefarm.errors import UsageError


@click.command()
@recipe_argument
@click.option(
    "--p99-ms",
    "slo_p99_ms",
    type=FiniteRange(0.001, 3_600_000),
    required=True,
    help="The limit for p99.",
)
@click.option(
    "--streams",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Measure with each number of sessions from 1 to this one, behind one queue.",
)
@precision_option("The graph to run; fp32 by default.")
@click.option(
    "--seconds",
    type=FiniteRange(0.01, 3600),
    default=5.0,
    show_default=True,
    help="Seconds for each rate, at least.",
)
@click.option(
    "--requests",
    "min_requests",
    type=click.IntRange(100, 10_000_000),
    default=500,
    show_default=True,
    help="Requests for each rate, at least.",
)
@click.option(
    "--engine", is_flag=True, help="Run the engine for this machine's GPU instead of the graph."
)
@click.option("--cuda-graph", is_flag=True, help="With --engine: run each pass as one CUDA graph.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="The seed of the arrivals.",
)
@click.option("--json", "as_json", is_flag=True, help="Print every column as JSON.")
def slo(
    recipe: Path,
    streams: int,
    precision: str | None,
    engine: bool,
    cuda_graph: bool,
    as_json: bool,
    **load: Any,
) -> None:
    """Find the highest rate of requests to RECIPE within a p99 limit.

    Requests arrive at random (a Poisson process) and wait in one queue for the first free stream;
    waiting is part of their latency. A request is one pass at the opt shapes of the first profile,
    in ONNX Runtime on this machine's CPU, or in the engine for its GPU. The rows go into the
    tables.
    """
    from functools import partial

    from enginefarm.bench.load import Load
    from enginefarm.bench.slo import load_cpu, load_gpu
    from enginefarm.cli.progress_view import watched
    from enginefarm.recipes import file as recipe_file
    from enginefarm.store import site
    from enginefarm.tables.tables import BenchmarkTables

    if cuda_graph and not engine:
        raise UsageError("bench slo --cuda-graph: only engines have one", fix="add --engine")
    measure = partial(load_gpu, cuda_graph=cuda_graph) if engine else load_cpu
    loaded = recipe_file.load(recipe)  # before a store is started for it
    here = site.here()
    wanted: Any = precision or "fp32"
    with watched(enabled=not as_json):
        rows = measure(here, loaded, wanted, Load(**load), range(1, streams + 1))
    BenchmarkTables(here.store.objects).append(rows)
    if as_json:
        print_json([row.model_dump(mode="json") for row in rows])
        return
    where = rows[0].gpu_name or rows[0].host_class
    print_table(
        f"{loaded.name} {wanted} on {where}: p99 within {load['slo_p99_ms']:g} ms",
        ("streams", "highest rate/s", "its p99 ms", "capacity/s", "shapes", "note"),
        [
            (
                str(row.streams),
                figure(row.slo_rate_per_s),
                figure(row.slo_reached_p99_ms),
                figure(row.capacity_per_s),
                row.shapes,
                row.reason or "–",
            )
            for row in rows
        ],
    )
