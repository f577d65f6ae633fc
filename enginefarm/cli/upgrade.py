"""`enginefarm upgrade`: what a new toolchain build would do, or did."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from enginefarm.cli.tables import print_json, print_table
from enginefarm.errors import UsageError
from enginefarm.store import open_store

if TYPE_CHECKING:
    from enginefarm.release.upgrade import Change
    from enginefarm.store.engine_store import EngineStore


@click.command()
@click.argument("toolchain")
@click.argument("build")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def upgrade(toolchain: str, build: str, as_json: bool) -> None:
    """Test TOOLCHAIN's new BUILD: show which engines no longer work, are rebuilt, or got slower or
    less accurate.

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
