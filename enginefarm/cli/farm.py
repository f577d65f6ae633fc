"""The commands of a farm: `server`, `worker`, `workers`, `deploy`, `submit` and `up`."""

from __future__ import annotations

import os
import platform
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from enginefarm import settings
from enginefarm.cli import completion
from enginefarm.cli.options import gpus_option, one_label, precisions_option, together
from enginefarm.cli.tables import print_json, print_table
from enginefarm.errors import FarmError, UsageError
from enginefarm.store import open_store

if TYPE_CHECKING:
    from enginefarm.farm.worker.card import Role


server_options = together(
    click.option(
        "--host", default="127.0.0.1", show_default=True, help="The address to listen on."
    ),
    click.option(
        "--port",
        default=4200,
        show_default=True,
        type=click.IntRange(1, 65535),
        help="The port of the API and the UI.",
    ),
    click.option("--public-url", metavar="URL", help="Where browsers reach it, behind a proxy."),
)


@click.command()
@server_options
def server(host: str, port: int, public_url: str | None) -> None:
    """Run the Prefect server and its UI, with a password.

    Its database is SQLite, or the one that ENGINEFARM_DATABASE_URL names, such as
    postgresql://user@host/database. The password is in farm/password of ENGINEFARM_HOME, where
    commands on this machine find it.
    """
    from enginefarm.farm.server import address
    from enginefarm.farm.server.environment import prepare_server

    url = prepare_server(host=host, port=port, public_url=public_url)
    address.save_url(url)
    click.echo(f"UI        {public_url or url.removesuffix('/api')}", err=True)
    click.echo(f"password  {address.password_file()}", err=True)
    prefect = [sys.executable, "-P", "-m", "enginefarm.farm.server.process", "server", "start"]
    os.execv(sys.executable, [*prefect, "--host", host, "--port", str(port)])  # noqa: S606


@click.command()
@click.option(
    "--gpu",
    "label",
    metavar="LABEL",
    callback=one_label,
    shell_complete=completion.gpus,
    help="Build and benchmark for this GPU.",
)
@click.option(
    "--cross", is_flag=True, help="With --gpu: this machine has no such GPU; cross-build for it."
)
@click.option("--cpu", is_flag=True, help="Cross-build for labels that have no worker.")
@click.option("--control", is_flag=True, help="Plan, export, calibrate, and start the builds.")
@click.option("--name", help="The worker's name; host, role and GPU by default.")
@click.option(
    "--limit",
    type=click.IntRange(1, 64),
    help="How many runs at a time: 1 by default, 8 with --control.",
)
def worker(
    label: str | None, cross: bool, cpu: bool, control: bool, name: str | None, limit: int | None
) -> None:
    """Run a worker that takes runs from a work pool until it is stopped.

    Choose one of --gpu, --cpu and --control. A worker with --gpu checks with NVML that its GPU
    has that label, and takes one run at a time.
    """
    role = _role(label, cross, cpu, control)

    from enginefarm.farm.server.environment import prepare_worker

    prepare_worker(control=role == "control")
    # Runs start in a folder of their own: relative paths mean this one.
    os.environ |= settings.current().absolute(os.environ)
    if role == "control":
        os.environ.setdefault("ENGINEFARM_RECIPE_ROOTS", str(Path.cwd()))

    from enginefarm.farm.worker import serve

    serve.serve(
        role=role,
        label=label,
        name=_name(name, role, label),
        limit=limit or (8 if role == "control" else 1),
    )


def _role(label: str | None, cross: bool, cpu: bool, control: bool) -> Role:
    if (label is not None) + cpu + control != 1:
        raise UsageError(
            "worker: give exactly one of --gpu LABEL, --cpu and --control",
            fix="enginefarm worker --gpu t4",
        )
    if cross and label is None:
        raise UsageError("worker: --cross goes with --gpu LABEL", fix="--cpu builds for any label")
    if label is not None:
        return "cross" if cross else "gpu"
    return "cpu" if cpu else "control"


def default_name(role: str, label: str | None) -> str:
    """The host's and the role's; the card's too, for a machine with several GPUs."""
    shown = role == "gpu" and os.environ.get("CUDA_VISIBLE_DEVICES")
    card = f"-{settings.shown_gpu()}" if shown else ""
    return f"{platform.node()}-{label or role}{card}"


def _name(name: str | None, role: str, label: str | None) -> str:
    made = name or default_name(role, label)
    made = re.sub(r"[^a-z0-9._-]+", "-", made.lower()).strip("-._")[:64].rstrip("-._")
    if not made:
        raise FarmError(f"worker: {name!r} is not a name", fix="use letters, digits, - and _")
    return made


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def workers(as_json: bool) -> None:
    """List the farm's workers, online or silent, and what each offers."""
    from enginefarm.farm.worker.card import list_workers

    found = list_workers(open_store())
    if as_json:
        print_json([row.model_dump(mode="json") for row in found])
        return
    now = datetime.now(UTC)
    rows = [
        (
            row.card.name,
            row.card.role,
            row.card.pool,
            f"{row.card.gpu_name}, {row.card.driver}" if row.card.gpu_name else "–",
            ", ".join(f"{tool.name} {tool.build}" for tool in row.card.toolchains) or "–",
            row.card.host,
            "online" if row.online else f"silent for {(now - row.seen_at).total_seconds():.0f} s",
        )
        for row in found
    ]
    print_table("Workers", ("name", "role", "pool", "GPU", "toolchains", "host", "state"), rows)


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
    """Put deployments and automations on the Prefect server. It is safe to repeat.

    Pools that workers created get their deployments as well. With ENGINEFARM_WEBHOOK_URL set,
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


@click.command()
@click.argument("recipe", shell_complete=completion.recipe_files)
@gpus_option("Only these of the recipe's GPUs (repeat, or with commas).")
@precisions_option("Only these of the recipe's precisions.")
@click.option("--no-wait", is_flag=True, help="Start the run and return immediately.")
def submit(recipe: str, gpus: tuple[str, ...], precisions: tuple[str, ...], no_wait: bool) -> None:
    """Build RECIPE on the farm, and follow the run until its engines are in the store.

    RECIPE is a path on the control worker's machine, absolute or relative to a recipe root, or
    @store/NAME. Ctrl-C stops following; the run continues.
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


@click.command()
@server_options
@click.option(
    "--postgres",
    metavar="URL",
    help="Use this database, postgresql://user:password@host/database. Default: SQLite.",
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
    After Ctrl-C no more runs start, and running ones have 30 s to finish; a second Ctrl-C ends them
    immediately.
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
        click.echo("stopping; press Ctrl-C again to stop immediately")

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
