"""`enginefarm report`: one HTML page with every engine."""

from __future__ import annotations

from pathlib import Path

import click

from enginefarm.cli import completion
from enginefarm.cli.options import NamedPath
from enginefarm.store import open_store


@click.command()
@click.argument(
    "recipes",
    nargs=-1,
    type=NamedPath(path_type=Path, dir_okay=False),
    shell_complete=completion.recipe_files,
)
@click.option(
    "--output",
    "-o",
    type=NamedPath(path_type=Path, dir_okay=False),
    default=Path("report.html"),
    show_default=True,
    help="Where to write the page.",
)
@click.option(
    "--nights",
    default=30,
    show_default=True,
    type=click.IntRange(1, 3650),
    help="How many nights the histories go back.",
)
@click.option("--title", default="Engine farm", show_default=True, help="The page's title.")
@click.option(
    "--publish", is_flag=True, help="Also put the page into the store, and print a link to it."
)
def report(recipes: tuple[Path, ...], output: Path, nights: int, title: str, publish: bool) -> None:
    """Write the benchmark report: one HTML file that opens without a network.

    With RECIPES, the report also shows the engines that these recipes ask for and that the
    store does not have yet.
    """
    import datetime as dt

    from enginefarm.planning.survey import local_offers, survey
    from enginefarm.recipes import file as recipe_file
    from enginefarm.report import nightly
    from enginefarm.store import site
    from enginefarm.store.disk import write_atomically

    loaded = [recipe_file.load(path) for path in recipes]
    surveys = [(one, survey(site.here(), one, local_offers())) for one in loaded]
    store = open_store()
    html = nightly.page(store, nights=nights, recipes=surveys, title=title)
    write_atomically(output, html.encode())
    click.echo(f"{output}: {len(html.encode()) / 1e3:,.0f} kB")
    if publish:
        key = nightly.publish(store, html, dt.datetime.now(dt.UTC).date())
        click.echo(f"published as {key}; open for a week at\n{nightly.link(store, key)}")
