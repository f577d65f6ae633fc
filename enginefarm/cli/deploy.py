"""`enginefarm deploy`: pools, deployments and automations onto the server."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option(
    "--prefect-file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Deployments of your own instead of those that are shipped.",
)
@click.option(
    "--gpu", "labels", multiple=True, metavar="LABEL", help="A pool for this GPU too (repeat)."
)
def deploy(prefect_file: Path | None, labels: tuple[str, ...]) -> None:
    """Put deployments and automations on the Prefect server. Safe to repeat.

    GPU pools that workers have made get theirs as well. With ENGINEFARM_WEBHOOK_URL set,
    failures and silent workers are posted there.
    """
    from enginefarm.farm.server.environment import prepare_client

    prepare_client()

    from enginefarm.farm.server import connection as farm
    from enginefarm.farm.server import deployments

    pools = [farm.pool_of(label) for label in labels]
    file = prefect_file or deployments.shipped("prefect.yaml")
    with farm.connected() as client:
        for name in deployments.apply(client, file=file, pools=pools):
            click.echo(f"deployment  {name}")
        for name in deployments.apply_automations(
            client, file=deployments.shipped("automations.yaml")
        ):
            click.echo(f"automation  {name}")
