"""`enginefarm deploy`: pools, deployments and automations onto the server."""

from __future__ import annotations

import click

from enginefarm.cli.options import gpus_option


@click.command()
@gpus_option("Create pools for these GPUs too (repeat, or separate with commas).", "labels")
@click.option(
    "--night",
    "cron",
    metavar="CRON",
    default="0 2 * * *",
    show_default=True,
    help="When the nightly rebuild starts.",
)
@click.option("--timezone", default="UTC", show_default=True, help="The time zone of --night.")
@click.option(
    "--folder",
    help="What the nightly rebuild surveys: a folder, or @store; the first recipe root by default.",
)
def deploy(labels: tuple[str, ...], cron: str, timezone: str, folder: str | None) -> None:
    """Put deployments and automations on the Prefect server. Safe to repeat.

    GPU pools that workers created get theirs as well. With ENGINEFARM_WEBHOOK_URL set,
    failures and silent workers are posted there.
    """
    from enginefarm.farm.server.environment import prepare_client

    prepare_client()

    from enginefarm.farm.server import connection as farm
    from enginefarm.farm.server import deployments

    pools = [farm.pool_of(label) for label in labels]
    night = deployments.Night(cron, timezone, folder)
    with farm.connected() as client:
        for name in deployments.apply(client, pools=pools, night=night):
            click.echo(f"deployment  {name}")
        for name in deployments.apply_automations(
            client, file=deployments.packaged("automations.yaml")
        ):
            click.echo(f"automation  {name}")
