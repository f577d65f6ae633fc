"""Tables for people, JSON for programs: outcomes, GPUs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from enginefarm.planning.outcome import Outcome

STYLES = {
    "built": "green",
    "cached": "cyan",
    "rejected": "red",
    "failed": "red",
    "skipped": "yellow",
}


def figure(value: Any) -> str:
    """A cell of a table; a dash for what is not known."""
    if value is None or value == "":
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_json(value: Any) -> None:
    from enginefarm.cli.screen import plain_json

    text = json.dumps(value, indent=2, ensure_ascii=False, default=lambda date: date.isoformat())
    click.echo(plain_json(text))


def print_outcomes(outcomes: Sequence[Outcome], *, as_json: bool) -> None:
    """The table of engines, and under it the line to try next."""
    from enginefarm.planning.outcome import HEADER, cells, pull_line, reasons

    if as_json:
        print_json([outcome.model_dump(mode="json") for outcome in outcomes])
        return
    rows = [cells(outcome) for outcome in outcomes]
    styles = [STYLES[outcome.status] for outcome in outcomes]
    title = f"Engines of {outcomes[0].recipe}" if outcomes else "No engines"
    print_table(title, HEADER, rows, styles)
    for reason in reasons(outcomes):
        click.echo(reason)
    command = pull_line(outcomes)
    if command:
        run = f"enginefarm run {outcomes[0].recipe}"
        click.echo(
            f"\nTry next:\n  {_as_called(command)}\n  {_as_called(run)}  # on the GPU's host"
        )


def _as_called(command: str) -> str:
    """The command as this shell would find it: by path, where it was called so."""
    import shutil
    import sys

    called = sys.argv[0]
    if called.endswith("/enginefarm") and shutil.which("enginefarm") is None:
        return command.replace("enginefarm", called, 1)
    return command


def print_table(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    last_column_styles: Sequence[str] = (),
    *,
    err: bool = False,
) -> None:
    """One table on standard output (or standard error); its title alone if it has no rows. Piped,
    it is wide enough never to wrap a cell."""
    import sys

    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from enginefarm.cli.screen import plain

    table = Table(box=SIMPLE_HEAD, collapse_padding=True)
    for name in header:
        table.add_column(name, overflow="fold")
    for index, row in enumerate(rows):
        style = last_column_styles[index] if last_column_styles else ""
        *cells, last = row
        table.add_row(*(Text(plain(cell)) for cell in cells), Text(plain(last), style=style))
    width = None if (sys.stderr if err else sys.stdout).isatty() else 160
    console = Console(width=width, stderr=err)
    console.print(Text(plain(title), style="table.title"), soft_wrap=True)
    if rows:
        console.print(table)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def gpus(as_json: bool) -> None:
    """List the GPUs that recipes can name, and what each can do."""
    from enginefarm.documents import support
    from enginefarm.documents.gpus import table

    rows = table().values()
    if as_json:
        print_json([{**row._asdict(), "support": support.cells(row)} for row in rows])
        return
    print_table(
        "GPUs",
        ("label", "compute capability", "memory", "bandwidth", "precisions", "TensorRT-RTX"),
        [
            (
                row.label,
                row.compute_capability,
                f"{row.memory_gib:g} GiB",
                f"{row.bandwidth_gb_s:g} GB/s",
                " ".join(row.precisions),
                support.sentence(row, "tensorrt-rtx"),
            )
            for row in rows
        ],
    )
    for line in support.evidence():
        click.echo(line)
