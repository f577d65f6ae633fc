"""`enginefarm cost`, `upgrade` and `report`: what the benchmark tables say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from enginefarm.cli import completion
from enginefarm.cli.options import FiniteRange, NamedPath, nights_option
from enginefarm.cli.tables import print_json, print_table
from enginefarm.errors import UsageError
from enginefarm.store import open_store

if TYPE_CHECKING:
    from enginefarm.release.cost import Costs, Move
    from enginefarm.release.upgrade import Change
    from enginefarm.store.engine_store import EngineStore


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
    from enginefarm.release.cost import CostLimits, costs, read_prices, what_if
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
    limits = CostLimits(profile=profile, p99_ms=p99_ms, min_top1=min_top1)
    found = costs(store, engines, prices, budgets.recorded(store, recipe), limits)
    moved = what_if(found, prices, pair[0].lower(), pair[1].lower()) if pair else None
    if as_json:
        said = {"costs": found.model_dump(mode="json"), "move": None}
        if moved:
            before, after = moved.per_hour
            said["move"] = moved.model_dump(mode="json") | {"before": before, "after": after}
        print_json(said)
        return
    if found.found:
        _print_found(name, found)
    for gpu, why in found.refused.items():
        click.echo(f"no figure for {gpu}: {why}")
    if moved:
        click.echo(_words(moved, found.currency))


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
    click.echo(f"cheapest: {found.found[0].gpu}. Its throughput is for one pass at a time.")


def _words(move: Move, currency: str) -> str:
    before, after = move.per_hour
    unit = f"{currency}/h" if currency else "an hour"
    return (
        f"the load of {move.gpus_before} {move.before.gpu} ({before:.4g} {unit}) needs "
        f"{move.gpus_after} {move.after.gpu} ({after:.4g} {unit}): {(after - before) / before:+.0%}"
    )


@click.command()
@click.argument(
    "recipes",
    nargs=-1,
    type=NamedPath(path_type=Path, dir_okay=False),
    shell_complete=completion.recipe_files,
)
@click.option(
    "--output",
    "-o",
    type=NamedPath(path_type=Path, dir_okay=False),
    default=Path("report.html"),
    show_default=True,
    help="Where to write the page.",
)
@nights_option("How many nights the histories go back.")
@click.option("--title", default="Engine farm", show_default=True, help="The page's title.")
@click.option(
    "--publish", is_flag=True, help="Also put the page into the store, and print a link to it."
)
def report(recipes: tuple[Path, ...], output: Path, nights: int, title: str, publish: bool) -> None:
    """Write the benchmark report: one HTML file that opens without a network.

    With RECIPES, the report also shows the engines that these recipes ask for and that the
    store does not have yet.
    """
    import datetime as dt

    from enginefarm.planning.survey import local_offers, survey
    from enginefarm.recipes import file as recipe_file
    from enginefarm.report import nightly
    from enginefarm.store import site
    from enginefarm.store.disk import write_atomically

    loaded = [recipe_file.load(path) for path in recipes]
    surveys = [(one, survey(site.here(), one, local_offers())) for one in loaded]
    store = open_store()
    html = nightly.page(store, nights=nights, recipes=surveys, title=title)
    write_atomically(output, html.encode())
    click.echo(f"{output}: {len(html.encode()) / 1e3:,.0f} kB")
    if publish:
        key = nightly.publish(store, html, dt.datetime.now(dt.UTC).date())
        click.echo(f"published as {key}; open for a week at\n{nightly.link(store, key)}")


@click.command()
@click.argument("toolchain")
@click.argument("build")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def upgrade(toolchain: str, build: str, as_json: bool) -> None:
    """Show what BUILD, another release of TOOLCHAIN, changes: which engines no longer load, are
    rebuilt, or got slower or less accurate.

    Example: enginefarm upgrade tensorrt-rtx 1.8.0.12
    """
    from enginefarm.release.upgrade import upgrade_report
    from enginefarm.tables.filter import RowFilter
    from enginefarm.tables.rules import recorded_rules
    from enginefarm.tables.tables import BenchmarkTables

    store = open_store()
    manifests = list(store.manifests())
    used = sorted({manifest.spec.toolchain.name for manifest in manifests})
    if toolchain not in used:
        raise UsageError(
            f"upgrade: no engine in the store was built with {toolchain!r}",
            fix=f"use one of: {', '.join(used) or 'none, the store is empty'}",
        )
    rows = BenchmarkTables(store.objects).rows(RowFilter.of(toolchain=toolchain))
    rules = recorded_rules(store, (row.recipe for row in rows))
    found = upgrade_report(manifests, toolchain, build, rows, rules)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    print_table(
        f"{toolchain} {build}: {len(found.with_fate('to-rebuild'))} to rebuild "
        f"(about {found.rebuild_seconds / 60:.1f} min of builds), "
        f"{len(found.with_fate('rebuilt'))} rebuilt, {len(found.with_fate('lives'))} live on",
        ("recipe", "GPU", "precision", "built with", "why", "fate"),
        [(e.recipe, e.gpu, e.precision, e.build, e.reason, e.fate) for e in found.engines],
        [{"lives": "green", "to-rebuild": "yellow"}.get(e.fate, "") for e in found.engines],
    )
    if found.changes:
        print_table(
            "After the rebuild, new over old",
            ("recipe", "GPU", "precision", "latency", "accuracy", "size", "build", "verdict"),
            [_cells(change) for change in found.changes],
            [{"slower": "red", "faster": "green"}.get(c.state, "") for c in found.changes],
        )
    for change in found.changes:
        if change.state == "slower":
            _why(store, change)


def _why(store: EngineStore, change: Change) -> None:
    """The layers of an engine that got slower, new against old."""
    from enginefarm.cli.layers import print_diff
    from enginefarm.tables.layers import compared

    name = f"{change.recipe} {change.gpu}/{change.precision}"
    found = compared(store, change.spec_digest_old, change.spec_digest_new)
    if isinstance(found, str):
        click.echo(f"{name} is slower; its layers cannot be compared: {found}")
    else:
        print_diff(found, f"{name} is slower: layers of the old build → the new one")


def _cells(change: Change) -> tuple[str, ...]:
    distance = _pair(change.relative_l2_old, change.relative_l2_new, "{:.2g}")
    return (
        change.recipe,
        change.gpu,
        change.precision,
        _pair(change.latency_ms_old, change.latency_ms_new, "{:.3g} ms"),
        f"{distance}{' (worse)' if change.less_accurate else ''}",
        _pair(change.size_bytes_old, change.size_bytes_new, "{:,} B"),
        _pair(change.build_seconds_old, change.build_seconds_new, "{:.1f} s"),
        f"{change.state}: {change.because}" if change.because else change.state,
    )


def _pair(old: float | None, new: float | None, form: str) -> str:
    shown = ("–" if value is None else form.format(value) for value in (old, new))
    return " → ".join(shown)
