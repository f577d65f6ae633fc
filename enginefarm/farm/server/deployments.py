"""Applies the deployments and automations to the server. It is idempotent.

Pools: `control` runs the steps that each recipe needs once, `cpu` cross-builds, and `gpu-<label>`
has one kind of GPU. build-engine is applied to `cpu` and to every GPU pool, benchmark-engine to
every GPU pool; their deployments have the pool's name.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo, available_timezones

from prefect import Flow
from prefect.automations import AutomationCore
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.types.entrypoint import EntrypointType
from pydantic import SecretStr, ValidationError
from ruamel.yaml import YAML

from enginefarm.errors import FarmError
from enginefarm.farm.server import connection as farm
from enginefarm.farm.worker.card import CONTROL_POOL
from enginefarm.names import loaded
from enginefarm.planning.plan import CROSS_POOL


class Row(NamedTuple):
    """One flow's deployment. name, pool: None for the name of every pool of its kind."""

    flow: str
    description: str
    name: str | None = None
    pools: str = CONTROL_POOL
    queue: str | None = None
    tags: tuple[str, ...] = ("enginefarm",)
    one_at_a_time: bool = False
    nightly: bool = False


BUILDERS, GPUS = "builders", "gpus"
"""Kinds of pools: those that build, `cpu` among them; those that have a GPU."""

ROWS = (
    Row(
        "flows.build_model:build_model",
        "Builds, verifies and publishes every engine of a recipe that is not in the store yet. "
        "One child run for each GPU and precision, on that GPU's pool.",
        name="build-model",
    ),
    Row(
        "flows.nightly_rebuild:nightly_rebuild",
        "Builds the missing engines of every recipe in a folder, and reports. Starts no run for "
        "engines that are already built.",
        name="nightly-rebuild",
        one_at_a_time=True,
        nightly=True,
    ),
    Row(
        "flows.promote:promote",
        "Moves a channel to a recipe's engines, if the gates pass and, unless `ask` is off, a "
        "person approves.",
        name="promote",
    ),
    Row(
        "flows.build_engine:build_engine",
        "Internal: builds one engine. build-model starts it.",
        pools=BUILDERS,
        tags=("enginefarm", "internal"),
    ),
    Row(
        "flows.benchmark_engine:benchmark_engine",
        "Verifies and times one engine on the GPU that it was built for.",
        pools=GPUS,
        queue="benchmark",  # workers that stand in for a GPU they lack do not listen to it
    ),
)


class Night(NamedTuple):
    """When the nightly rebuild starts, and which folder it builds."""

    cron: str = "0 2 * * *"
    timezone: str = "UTC"
    folder: str | None = None
    """None: the control worker's first recipe root."""

    def parameters(self) -> dict[str, str]:
        return {} if self.folder is None else {"folder": self.folder}

    def schedule(self) -> DeploymentScheduleCreate:
        """Raises: FarmError for an invalid time or time zone."""
        if self.timezone not in available_timezones():
            raise FarmError(
                f"deploy: --timezone {self.timezone} is not a time zone",
                fix="name one of the tz database, such as UTC or Europe/Berlin",
            )
        try:
            schedule = CronSchedule(cron=self.cron, timezone=ZoneInfo(self.timezone).key)
        except ValidationError as error:
            raise FarmError(
                f"deploy: --night {self.cron!r} is not a cron expression",
                why=str(error.errors()[0]["msg"]),
                fix="minute, hour, day, month, weekday: '0 2 * * *' is every night at two",
            ) from error
        return DeploymentScheduleCreate(schedule=schedule, active=True, slug="nightly")


WEBHOOK_URL = "ENGINEFARM_WEBHOOK_URL"
WEBHOOK_BLOCK = "enginefarm-webhook"
WEBHOOK_BODY = (
    '{"text": "TEXT", "automation": "{{ automation.name }}", "event": "{{ event.event }}", '
    '"resource": "{{ event.resource.id }}", "at": "{{ event.occurred }}"}'
)


def packaged(name: str) -> Path:
    """A file of deployments/: at the top of a checkout, inside enginefarm.farm in a wheel."""
    checkout = Path(__file__).resolve().parents[3] / "deployments" / name
    return (
        checkout if checkout.is_file() else Path(str(files("enginefarm.farm") / "deployed" / name))
    )


def apply(
    client: SyncPrefectClient, *, pools: Iterable[str] = (), night: Night | None = None
) -> list[str]:
    """Registers every deployment; returns their full names.

    pools: GPU pools beyond those that the server has already. Raises: FarmError.
    """
    when = night or Night()
    when.schedule()
    gpus = sorted({*farm.gpu_pools(client), *pools})
    for pool in (CONTROL_POOL, CROSS_POOL, *gpus):
        farm.ensure_pool(client, pool)
    return [_apply(row, pool, when) for row in ROWS for pool in _pools_of(row, gpus)]


def ensure_applied(client: SyncPrefectClient, flow: str, pool: str) -> UUID:
    """The flow's deployment in that pool; creates the pool, and registers what its engines need,
    unless the server has it."""
    farm.ensure_pool(client, pool)
    name = f"{flow}/{pool}"
    try:
        return client.read_deployment_by_name(name).id
    except ObjectNotFound:
        for row in ROWS:
            if row.pools in (BUILDERS, GPUS) and pool in _pools_of(row, (pool,)):
                _apply(row, pool, Night())
    return client.read_deployment_by_name(name).id


def _pools_of(row: Row, gpus: Iterable[str]) -> tuple[str, ...]:
    labels = tuple(pool for pool in gpus if pool != CROSS_POOL)
    return {BUILDERS: (CROSS_POOL, *labels), GPUS: labels}.get(row.pools, (row.pools,))


def _apply(row: Row, pool: str, night: Night) -> str:
    # Imported here: Prefect's way by name would look in the folder where we stand first.
    flow: Flow[..., Any] = loaded(row.flow)
    limit = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW)
    deployment = RunnerDeployment.from_flow(
        flow,
        name=row.name or pool,
        description=row.description,
        tags=list(row.tags),
        parameters=dict[str, Any](night.parameters()) if row.nightly else {},
        schedules=[night.schedule()] if row.nightly else None,
        concurrency_limit=limit if row.one_at_a_time else None,
        work_pool_name=pool,
        work_queue_name=row.queue,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    deployment.apply()
    return deployment.full_name


def apply_automations(client: SyncPrefectClient, *, file: Path) -> list[str]:
    """Creates or updates each automation of the file, by name."""
    webhook = _webhook()
    names: list[str] = []
    parser: Any = YAML(typ="safe")  # it is typed in part
    for entry in parser.load(file.read_text("utf-8")):
        entry["actions"] = [_action(action, webhook) for action in entry["actions"]]
        wanted = AutomationCore.model_validate(entry)
        same = client.read_automations_by_name(wanted.name)
        if same:
            client.update_automation(same[0].id, wanted)
        else:
            client.create_automation(wanted)
        names.append(wanted.name)
    return names


def _webhook() -> UUID | None:
    """The block that notifications go through; its URL is kept encrypted by the server."""
    url = os.environ.get(WEBHOOK_URL)
    if url:
        Webhook(url=SecretStr(url)).save(WEBHOOK_BLOCK, overwrite=True)
    try:
        block: Any = Webhook.load(WEBHOOK_BLOCK)
    except ValueError:
        return None
    return UUID(str(block._block_document_id))


def _action(action: dict[str, Any], webhook: UUID | None) -> dict[str, Any]:
    if action["type"] != "notify":
        return action
    if webhook is None:
        return {"type": "do-nothing"}
    body = WEBHOOK_BODY.replace("TEXT", action["text"])
    return {"type": "call-webhook", "block_document_id": str(webhook), "payload": body}
