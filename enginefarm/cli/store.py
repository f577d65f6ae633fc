"""`enginefarm store`: where the store is, and whether the embedded one runs."""

from __future__ import annotations

import os

import click


@click.command()
@click.argument("action", type=click.Choice(["status", "start", "stop"]), default="status")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def store(action: str, as_json: bool) -> None:
    """Show the store; start or stop the embedded one (its data stays)."""
    from enginefarm.cli.tables import print_json
    from enginefarm.store import EMBEDDED, embedded

    url = os.environ.get("ENGINEFARM_STORE") or ""
    own = not url or url.startswith(EMBEDDED)
    home = embedded.home_of(url)
    if action == "start" and own:
        embedded.start(home)
    if action == "stop" and own:
        embedded.stop(home)
    server = embedded.running(home) if own else None
    said = {
        "url": url or f"{EMBEDDED}{home}",
        "embedded": own,
        "running": server is not None,
        "endpoint": server.endpoint if server else os.environ.get("AWS_ENDPOINT_URL"),
        "pid": server.pid if server else None,
    }
    if as_json:
        print_json(said)
        return
    for name, value in said.items():
        click.echo(f"{name:9} {value}")
