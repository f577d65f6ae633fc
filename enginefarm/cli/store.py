"""`enginefarm store`: where the store is, whether the embedded one runs, what a server does."""

from __future__ import annotations

import os

import click

from enginefarm.cli.tables import print_json
from enginefarm.errors import StoreError
from enginefarm.store import EMBEDDED, open_store


@click.command()
@click.argument("action", type=click.Choice(["status", "start", "stop", "check"]), default="status")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def store(action: str, as_json: bool) -> None:
    """Show the store; start or stop the embedded one (its data stays); check a server.

    `check` tries every call that the farm needs on objects of its own, which it deletes, and
    says which of them the server does not do. The exit code is then 40.
    """
    if action == "check":
        _check(as_json=as_json)
        return
    from enginefarm.store import embedded

    url = os.environ.get("ENGINEFARM_STORE") or ""
    own = not url or url.startswith(EMBEDDED)
    server = None
    if own:
        home = embedded.home_of(url)
        url = url or f"{EMBEDDED}{home}"
        if action == "start":
            embedded.start(home)
        if action == "stop":
            embedded.stop(home)
        server = embedded.running(home)
    said = {
        "url": url,
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


def _check(*, as_json: bool) -> None:
    from enginefarm.store.check import checks

    store = open_store()
    results = checks(store.objects)
    if as_json:
        print_json([one._asdict() for one in results])
    else:
        for one in results:
            click.echo(f"{'NO ' if one.failure else 'yes'}  {one.needed}")
            if one.failure:
                click.echo(f"     {one.failure}")
    missing = [one.needed for one in results if one.failure]
    if missing:
        raise StoreError(
            f"store check: {store.objects.where} does not do what the farm needs",
            why="; ".join(missing),
            fix="use another S3 server, or a newer version of this one",
        )
