"""`enginefarm up`: a whole farm in one terminal."""

from __future__ import annotations

import os

import click


@click.command()
@click.option("--port", default=4200, show_default=True, type=click.IntRange(1, 65535))
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--public-url", metavar="URL", help="Where browsers reach it, behind a proxy.")
@click.option(
    "--postgres", metavar="URL", help="postgresql://user:password@host/database; else SQLite."
)
@click.option(
    "--recipes",
    multiple=True,
    metavar="FOLDER",
    help="A folder that recipes may come from, or @store (repeat); this folder by default.",
)
def up(
    port: int, host: str, public_url: str | None, postgres: str | None, recipes: tuple[str, ...]
) -> None:
    """Start the server, a control worker and a CPU worker, until Ctrl-C.

    State is kept in ENGINEFARM_HOME; the other commands on this machine find the farm there.
    After Ctrl-C no more runs start, and the farm ends; a second Ctrl-C ends it at once.
    """
    import signal
    import threading

    from enginefarm.farm import up as local_farm
    from enginefarm.farm.server import address

    if postgres:
        os.environ["ENGINEFARM_DATABASE_URL"] = postgres
    if recipes:
        os.environ["ENGINEFARM_RECIPE_ROOTS"] = os.pathsep.join(recipes)
    # Our own server, whatever another farm's exports say.
    for name in (address.API_URL, address.PASSWORD):
        os.environ.pop(name, None)
    stopped = threading.Event()

    def stop(*_: object) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()
        click.echo("stopping; press Ctrl-C again to stop at once")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    options = {"host": host, "port": str(port)} | ({"public-url": public_url} if public_url else {})
    with local_farm.farm(options, click.echo, stopped) as parts:
        address.configure()
        url = public_url or os.environ[address.API_URL].removesuffix("/api")
        click.echo(f"UI        {url}")
        click.echo(f"password  {address.saved_password()}")
        click.echo(f"logs      {local_farm.logs()}")
        click.echo("on other machines, run first:")
        click.echo(f"  {local_farm.export_line()}")
        click.echo("next:\n  enginefarm submit RECIPE")
        local_farm.watch(parts, stopped)
