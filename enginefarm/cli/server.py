"""`enginefarm server`: Prefect's server, set up for a farm."""

from __future__ import annotations

import os
import sys

import click


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=4200, show_default=True, type=click.IntRange(1, 65535))
@click.option("--public-url", metavar="URL", help="Where browsers reach it, behind a proxy.")
def server(host: str, port: int, public_url: str | None) -> None:
    """Run the Prefect server and its UI, with a password.

    SQLite by default; ENGINEFARM_DATABASE_URL=postgresql://user@host/database for a team.
    The password is in farm/password of ENGINEFARM_HOME; commands on this machine find it there.
    """
    from enginefarm.farm.server import address
    from enginefarm.farm.server.environment import prepare_server

    url = prepare_server(host=host, port=port, public_url=public_url)
    address.save_url(url)
    click.echo(f"UI        {public_url or url.removesuffix('/api')}", err=True)
    click.echo(f"password  {address.password_file()}", err=True)
    prefect = [sys.executable, "-P", "-m", "enginefarm.farm.server.process", "server", "start"]
    os.execv(sys.executable, [*prefect, "--host", host, "--port", str(port)])  # noqa: S606
