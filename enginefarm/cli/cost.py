"""`enginefarm cost`: what a million inferences cost on each GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from enginefarm.cli import completion
from enginefarm.cli.options import FiniteRange, NamedPath
from enginefarm.cli.tables import print_json, print_table
from enginefarm.errors import UsageError
from enginefarm.store import open_store

if TYPE_CHECKING:
    from enginefarm.release.cost import Costs, Move


@click.command()
@click.argument("name", metavar="NAME[@CHANNEL]", shell_complete=completion.engines)
@click.option(
    "--prices",
    "file",
    required=True,
    type=NamedPath(path_type=Path, dir_okay=False),
    help="TOML: [per_hour] with a price for each GPU's label; [fleet] with how many there are.",
)
@click.option(
    "--profile", metavar="NAME", help="Compare at this profile's shapes. Default: the first one."
)
@click.option(
    "--p99-ms", type=FiniteRange(1e-6), help="Consider only engines with a p99 of at most this."
)
@click.option(
    "--min-top1",
    type=FiniteRange(0, 1),
    help="Consider only engines with at least this top-1 accuracy.",
)
@click.option(
    "--move", metavar="GPU=GPU", help="Show what the first GPU's load would cost on the second."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def cost(
    name: str,
    file: Path,
    profile: str | None,
    p99_ms: float | None,
    min_top1: float | None,
    move: str | None,
    as_json: bool,
) -> None:
    """Show the cost per million inferences of NAME by GPU, the cheapest first.

    It is computed from benchmark rows and your prices. A GPU that was not measured is named,
    without a figure.
    """
    from enginefarm.release.cost import Limits, costs, read_prices, what_if
    from enginefarm.release.promote import candidates, newest_engines
    from enginefarm.store import budgets, channels
    from enginefarm.store.signing import trust

    prices = read_prices(file)
    pair = move.split("=") if move else []
    if move is not None and (len(pair) != 2 or not all(pair)):
        raise UsageError(f"cost --move: {move!r} is not GPU=GPU", fix="write --move t4=l4")
    store = open_store()
    recipe, channel = channels.split(name)
    engines = (
        candidates(store, recipe, channel, trust()) if channel else newest_engines(store, recipe)
    )
    limits = Limits(profile=profile, p99_ms=p99_ms, min_top1=min_top1)
    found = costs(store, engines, prices, budgets.recorded(store, recipe), limits)
    moved = what_if(found, prices, pair[0].lower(), pair[1].lower()) if pair else None
    if as_json:
        said = {"costs": found.model_dump(mode="json"), "move": None}
        if moved:
            before, after = moved.per_hour
            said["move"] = moved.model_dump(mode="json") | {"before": before, "after": after}
        print_json(said)
        return
    _print(name, found)
    if moved:
        click.echo(_words(moved, found.currency))


def _print(name: str, found: Costs) -> None:
    if found.found:
        _print_found(name, found)
    for gpu, why in found.refused.items():
        click.echo(f"no figure for {gpu}: {why}")


def _print_found(name: str, found: Costs) -> None:
    unit = found.currency or "price"
    print_table(
        f"{name}: {unit} for a million inferences, measured with {found.measured_with}",
        ("GPU", f"{unit}/million", f"{unit}/h", "engine", "batch", "p99", "samples/s", "spec"),
        [
            (
                one.gpu,
                f"{one.per_million:.4g}",
                f"{one.per_hour:g}",
                one.precision + (" + CUDA graph" if one.speed.cuda_graph else ""),
                str(one.speed.batch),
                "–" if one.speed.latency_ms_p99 is None else f"{one.speed.latency_ms_p99:.3g} ms",
                f"{one.speed.samples_per_s:,.0f}",
                one.spec_digest[:12],
            )
            for one in found.found
        ],
    )
    click.echo(f"cheapest: {found.found[0].gpu}. Throughput is of one pass at a time.")


def _words(move: Move, currency: str) -> str:
    before, after = move.per_hour
    unit = f"{currency}/h" if currency else "an hour"
    return (
        f"the load of {move.gpus_before} {move.before.gpu} ({before:.4g} {unit}) needs "
        f"{move.gpus_after} {move.after.gpu} ({after:.4g} {unit}): {(after - before) / before:+.0%}"
    )
