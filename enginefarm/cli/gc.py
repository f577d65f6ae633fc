"""`enginefarm gc`: delete what nothing holds."""

from __future__ import annotations

import click

from enginefarm.cli.options import FiniteRange
from enginefarm.cli.tables import print_json, print_table
from enginefarm.store import open_store

SHOWN = 40


@click.command()
@click.option("--delete", is_flag=True, help="Really delete; without this option it is a dry run.")
@click.option("--keep-builds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--keep-revisions", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--grace-hours",
    type=FiniteRange(0),
    default=7 * 24,
    show_default=True,
    help="Keep what was written or used within this time.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def gc(
    delete: bool, keep_builds: int, keep_revisions: int, grace_hours: float, as_json: bool
) -> None:
    """Find engines and bytes that no channel, recent build or grace period holds.

    It keeps the last --keep-builds of each recipe, GPU and precision, and what the last
    --keep-revisions of each channel name. It is safe while builds are running.
    """
    from datetime import timedelta

    from enginefarm.cli.progress_view import watched
    from enginefarm.release.gc import Policy, collect

    policy = Policy(
        keep_builds=keep_builds,
        keep_revisions=keep_revisions,
        grace=timedelta(hours=grace_hours),
    )
    with watched(enabled=not as_json and delete):
        found = collect(open_store(), policy, delete=delete)
    if as_json:
        print_json({**found.model_dump(mode="json"), "freed_bytes": found.freed_bytes})
        return
    if found.garbage:
        print_table(
            "Deleted" if found.deleted else "Would be deleted",
            ("key", "size", "why"),
            [
                (one.key, f"{one.size_bytes / 1e6:,.1f} MB", one.why)
                for one in found.garbage[:SHOWN]
            ],
        )
        if len(found.garbage) > SHOWN:
            click.echo(f"… and {len(found.garbage) - SHOWN} more")
    verb = "deleted" if found.deleted else "to delete"
    click.echo(
        f"{len(found.garbage)} objects {verb}, {found.freed_bytes / 1e6:,.1f} MB; "
        f"{found.kept_engines} engines and {found.kept_bytes / 1e6:,.1f} MB stay"
    )
    if found.garbage and not found.deleted:
        click.echo("Nothing was deleted. Add --delete to do so.")
