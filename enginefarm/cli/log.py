"""`enginefarm log`: what the builder of an engine printed, also when the build failed."""

from __future__ import annotations

import click

from enginefarm.cli import completion
from enginefarm.cli.options import gpu_option, precision_option
from enginefarm.errors import StoreMissing, UsageError
from enginefarm.store import open_store


@click.command()
@click.argument("recipe", shell_complete=completion.engines)
@gpu_option("The GPU that it was built for.", required=True)
@precision_option("The precision; needed when the recipe has several.")
@click.option(
    "--failed", is_flag=True, help="Print the last failed build even if an engine exists."
)
def log(recipe: str, gpu: str, precision: str | None, failed: bool) -> None:
    """Print the newest build log of RECIPE for a GPU, of its engine or of the failure.

    Logs of failed builds are kept in the store for 30 days, the last five of each engine.
    """
    from enginefarm.documents.gpus import gpu as row_of
    from enginefarm.store import failed_builds
    from enginefarm.store.cache import BlobCache
    from enginefarm.store.channels import named

    label = row_of(gpu).label
    named(recipe)
    store = open_store()
    failures = failed_builds.listed(store, recipe, label, precision)
    engines = [
        one for one in store.manifests(recipe, label, precision) if one.build.log is not None
    ]
    found = sorted({one.precision for one in engines} | {one.precision for one in failures})
    if len(found) > 1:
        raise UsageError(
            f"log: {recipe} has several precisions for {label}: {', '.join(found)}",
            fix=f"enginefarm log {recipe} --gpu {label} --precision {found[0]}",
        )
    newest = max(engines, key=lambda one: one.created_at, default=None)
    if failures and (failed or newest is None or failures[0].at > newest.created_at):
        text = failed_builds.read(store, failures[0])
        click.echo(f"failed at {failures[0].at:%Y-%m-%d %H:%M} UTC: {failures[0].key}\n", err=True)
        click.echo(text or "")
        return
    if newest is None or newest.build.log is None or failed:
        raise StoreMissing(
            f"log: the store has no log of building {recipe} for {label}",
            why="no build of it has ended, or its log was deleted",
            fix=f"enginefarm list {recipe} lists the engines in the store",
        )
    path = BlobCache().ensure(store, newest.build.log)
    click.echo(f"built at {newest.created_at:%Y-%m-%d %H:%M} UTC: {newest.spec.label}\n", err=True)
    click.echo(path.read_bytes().decode("utf-8", "replace"))
