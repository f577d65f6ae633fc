"""`enginefarm fsck`: audit the store, and mend it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from enginefarm.cli.tables import print_json, print_table
from enginefarm.errors import CorruptBlob

if TYPE_CHECKING:
    from enginefarm.release.findings import Finding

SHOWN = 200


@click.command()
@click.option(
    "--repair",
    is_flag=True,
    help="Repair what can be repaired; without this option nothing is changed.",
)
@click.option("--bytes", "read_bytes", is_flag=True, help="Also download and hash every blob.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def fsck(repair: bool, read_bytes: bool, as_json: bool) -> None:
    """Check every manifest, index entry, blob, record, channel and recipe of the store.

    The exit code is 44 while something is wrong that --repair has not fixed. A lost blob is
    uploaded again from this machine's cache, where that has it.
    """
    from enginefarm.cli.progress_view import watched
    from enginefarm.release.fsck import check
    from enginefarm.store.site import here

    with watched(enabled=not as_json):
        audit = check(here(), repair=repair, read_bytes=read_bytes)
    if as_json:
        print_json({**audit.model_dump(mode="json"), "open": len(audit.open)})
    else:
        rows = [
            (
                one.key,
                one.what,
                one.mend or one.fix or "nothing to do",
                _state(one),
            )
            for one in audit.findings[:SHOWN]
        ]
        if rows:
            print_table("Findings", ("object", "what is wrong", "repair", "state"), rows)
        click.echo(
            f"{audit.objects} objects, {audit.engines} whole engines, "
            f"{audit.bytes_hashed / 1e6:,.1f} MB hashed: {len(audit.findings)} findings, "
            f"{len(audit.open)} open"
        )
    if audit.open:
        mendable = [one for one in audit.open if one.mend]
        raise CorruptBlob(
            f"fsck: {len(audit.open)} findings are open",
            why=f"{audit.open[0].key}: {audit.open[0].what}",
            fix="enginefarm fsck --repair" if mendable else audit.open[0].fix,
        )


def _state(one: Finding) -> str:
    if one.mended:
        return "mended"
    return "harmless" if one.harmless else "open"
