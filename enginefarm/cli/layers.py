"""`enginefarm diff`: two engines, layer by layer. The tables of layers that others show too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from enginefarm.cli.screen import plain
from enginefarm.cli.tables import print_json, print_table
from enginefarm.errors import UsageError
from enginefarm.store import open_store

if TYPE_CHECKING:
    from enginefarm.documents.layers import Layer, Layers
    from enginefarm.store.engine_store import EngineStore
    from enginefarm.tables.layer_diff import LayerDiff

ROWS_SHOWN = 40


@click.command("diff")
@click.argument("a")
@click.argument("b")
@click.option("--all", "every", is_flag=True, help="Also show rows without a difference.")
@click.option("--json", "as_json", is_flag=True, help="Print every row as JSON.")
def diff_(a: str, b: str, every: bool, as_json: bool) -> None:
    """Compare two engines layer by layer: fusions, precision, tactic, bytes, milliseconds.

    A and B are spec digests (8 digits are enough), NAME/GPU/PRECISION, or files that an engine
    inspector or `trtexec --exportLayerInfo` wrote. Layers are aligned by the ONNX nodes behind
    them. Milliseconds are shown when `bench run --layers` has profiled the engine.
    """
    from enginefarm.tables.layer_diff import diff

    store: list[EngineStore] = []
    (of_a, layers_a), (of_b, layers_b) = _layers(a, store), _layers(b, store)
    found = diff(layers_a, layers_b)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    print_diff(found, f"A: {of_a}   B: {of_b}", every=every)


def _layers(what: str, opened: list[EngineStore]) -> tuple[str, Layers]:
    """Reads a file, or an engine of the store, which is opened once and only if needed; with its
    name in full."""
    from enginefarm.tables.layers import layers_of, layers_of_file

    if Path(what).is_file():
        return what, layers_of_file(Path(what))
    if what.endswith(".json"):
        raise UsageError(f"diff: there is no file {what}", fix="give the file's path")
    from enginefarm.cli.listing import find

    if not opened:
        opened.append(open_store())
    engine = find(opened[0], what, None, None, command="diff")
    name = f"{engine.recipe}/{engine.spec.label} {engine.spec_digest[:12]}"
    return name, layers_of(opened[0], engine)


def print_diff(found: LayerDiff, title: str, *, every: bool = False) -> None:
    """The rows that differ, the costliest first, and what cannot be told."""
    from enginefarm.tables.layer_diff import HEADER, cells, pair

    rows = found.rows if every else found.changed
    shown = rows if every else rows[:ROWS_SHOWN]
    a, b = found.layers
    times = pair(found.ms[0], found.ms[1], "{:.3g} ms")
    title += f"\n{a} → {b} layers, {len(found.changed)} of {len(found.rows)} groups differ"
    title += f", sum of layers {times}" if any(found.ms) else ""
    if shown:
        print_table(title, HEADER, [cells(row) for row in shown])
    else:
        click.echo(plain(title))
    if len(rows) > len(shown):
        click.echo(f"and {len(rows) - len(shown)} more: --all shows them")
    for note in found.notes:
        click.echo(f"note: {note}")


def print_layers(found: Layers, title: str) -> None:
    """Every layer of one engine, in the order in which they run."""
    print_table(
        f"{title}: {len(found.layers)} layers"
        + (", of the network before the build: its fusions are not known" * found.network),
        ("layer", "kind", "ONNX nodes", "precision", "tactic", "weights", "written", "ms"),
        [_layer_row(layer) for layer in found.layers],
    )


def _layer_row(layer: Layer) -> tuple[str, ...]:
    from enginefarm.tables.layer_diff import one, short

    return (
        layer.name,
        layer.kind,
        short(layer.nodes),
        layer.precision,
        layer.tactic,
        one(layer.weight_bytes, "{:,} B"),
        one(layer.output_bytes, "{:,} B"),
        one(layer.ms, "{:.4f}"),
    )
