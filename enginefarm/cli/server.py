"""`enginefarm server`: Prefect's server, set up for a farm."""

from __future__ import annotations

import os
import sys

import click


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=4200, show_default=True, type=click.IntRange(1, 65535))
def server(host: str, port: int) -> None:
    """Run the Prefect server and its UI.

    SQLite by default; ENGINEFARM_DATABASE_URL=postgresql://user@host/database for a team.
    """
    from enginefarm.farm.server.environment import prepare_server

    prepare_server()
    prefect = [sys.executable, "-m", "enginefarm.farm.server.process", "server", "start"]
    os.execv(sys.executable, [*prefect, "--host", host, "--port", str(port)])  # noqa: S606
