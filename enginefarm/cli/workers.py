"""`enginefarm workers`: who is there, and what they offer."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from enginefarm.cli.tables import print_json, print_table
from enginefarm.store import open_store


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def workers(as_json: bool) -> None:
    """List the farm's workers, online or silent, and what each offers."""
    from enginefarm.farm.worker.card import list_workers

    found = list_workers(open_store())
    if as_json:
        print_json([row.model_dump(mode="json") for row in found])
        return
    now = datetime.now(UTC)
    rows = [
        (
            row.card.name,
            row.card.role,
            row.card.pool,
            f"{row.card.gpu_name}, {row.card.driver}" if row.card.gpu_name else "–",
            ", ".join(f"{tool.name} {tool.build}" for tool in row.card.toolchains) or "–",
            row.card.host,
            "online" if row.online else f"silent for {(now - row.seen_at).total_seconds():.0f} s",
        )
        for row in found
    ]
    print_table("Workers", ("name", "role", "pool", "GPU", "toolchains", "host", "state"), rows)
