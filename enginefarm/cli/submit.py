"""`enginefarm submit`: a recipe built by the farm, followed from here."""

from __future__ import annotations

import click

from enginefarm.cli import completion
from enginefarm.cli.options import gpus_option, precisions_option
from enginefarm.cli.tables import print_table


@click.command()
@click.argument("recipe", shell_complete=completion.recipe_files)
@gpus_option("Only these of the recipe's GPUs (repeat, or with commas).")
@precisions_option("Only these of the recipe's precisions.")
@click.option("--no-wait", is_flag=True, help="Start the run and return at once.")
def submit(recipe: str, gpus: tuple[str, ...], precisions: tuple[str, ...], no_wait: bool) -> None:
    """Build RECIPE on the farm, and follow the run until its engines are in the store.

    RECIPE is a path as the control worker knows it (from its recipe roots, or absolute), or
    @store/NAME. Ctrl-C stops following; the run goes on.
    """
    from enginefarm.farm.server.environment import prepare_client

    prepare_client()

    from enginefarm.farm import submit as farm_run
    from enginefarm.farm.server import connection

    with connection.connected() as client:
        run_id = farm_run.start(client, recipe, gpus, precisions)
        click.echo(f"{connection.ui_url()}/runs/flow-run/{run_id}")
        if no_wait:
            return
        run = farm_run.follow(client, run_id, click.echo)
        rows = farm_run.table(client, run_id)
    if rows:
        print_table(
            f"Engines of {recipe}",
            list(rows[0]),
            [[str(cell) for cell in row.values()] for row in rows],
        )
    error = farm_run.failure(run)
    if error is not None:
        raise error
