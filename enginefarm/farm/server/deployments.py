"""Deployments and automations: their files, and their way to the server. Idempotent."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.automations import AutomationCore
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from pydantic import SecretStr
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from enginefarm.errors import FarmError
from enginefarm.farm.server import connection as farm
from enginefarm.farm.worker.card import CONTROL_POOL
from enginefarm.planning.plan import CROSS_POOL

ANY_GPU = "gpu"
"""Stands in prefect.yaml for every GPU pool."""

WEBHOOK_URL = "ENGINEFARM_WEBHOOK_URL"
WEBHOOK_BLOCK = "enginefarm-webhook"
WEBHOOK_BODY = (
    '{"text": "TEXT", "automation": "{{ automation.name }}", "event": "{{ event.event }}", '
    '"resource": "{{ event.resource.id }}", "at": "{{ event.occurred }}"}'
)


def shipped(name: str) -> Path:
    """A file of deployments/: at the top of a checkout, inside enginefarm.farm in a wheel."""
    checkout = Path(__file__).resolve().parents[3] / "deployments" / name
    return (
        checkout if checkout.is_file() else Path(str(files("enginefarm.farm") / "deployed" / name))
    )


def apply(client: SyncPrefectClient, *, file: Path, pools: Iterable[str] = ()) -> list[str]:
    """Registers the deployments of a prefect.yaml; gives their full names.

    pools: GPU pools beyond those that the server has already.
    Raises: FarmError naming the entry that is not valid.
    """
    gpus = sorted({*farm.gpu_pools(client), *pools})
    for pool in (CONTROL_POOL, CROSS_POOL, *gpus):
        farm.ensure_pool(client, pool)
    return [_apply(entry, pool) for entry in _entries(file) for pool in _pools_of(entry, gpus)]


def ensure_applied(client: SyncPrefectClient, flow: str, pool: str) -> None:
    """Registers what engines of a pool need, unless it is there. Creates the pool, too."""
    try:
        client.read_deployment_by_name(f"{flow}/{pool}")
    except ObjectNotFound:
        apply_to_pool(client, pool)


def apply_to_pool(client: SyncPrefectClient, pool: str) -> None:
    farm.ensure_pool(client, pool)
    for entry in _entries(shipped("prefect.yaml")):
        by_pool = entry["work_pool"]["name"] in (CROSS_POOL, ANY_GPU)
        if by_pool and pool in _pools_of(entry, () if pool == CROSS_POOL else (pool,)):
            _apply(entry, pool)


def _pools_of(entry: dict[str, Any], gpus: Iterable[str]) -> tuple[str, ...]:
    pool = entry["work_pool"]["name"]
    if pool == CROSS_POOL:
        return (CROSS_POOL, *gpus)
    return tuple(gpus) if pool == ANY_GPU else (pool,)


def _entries(file: Path) -> list[dict[str, Any]]:
    try:
        document = _read_yaml(file.read_text("utf-8"))
        entries: list[dict[str, Any]] = document["deployments"]
        for entry in entries:
            for field in ("name", "entrypoint"):
                if not isinstance(entry[field], str):
                    raise TypeError(f"{field} is not text")
            entry["work_pool"]["name"]
    except (OSError, YAMLError, KeyError, TypeError) as error:
        raise FarmError(
            f"deploy: {file} is not a file of deployments",
            why=str(error).splitlines()[0],
            fix="each entry has `name`, `entrypoint` and `work_pool.name`; see "
            "deployments/prefect.yaml",
        ) from error
    return entries


def _read_yaml(text: str) -> Any:
    parser: Any = YAML(typ="safe")  # it is typed in part
    return parser.load(text)


def _apply(entry: dict[str, Any], pool: str) -> str:
    named_by_pool = entry["work_pool"]["name"] in (CROSS_POOL, ANY_GPU)
    limit = entry.get("concurrency_limit")
    try:
        deployment = RunnerDeployment.from_entrypoint(
            entry["entrypoint"],
            name=pool if named_by_pool else entry["name"],
            description=entry.get("description"),
            tags=entry.get("tags") or [],
            parameters=entry.get("parameters") or {},
            schedules=[_schedule(row) for row in entry.get("schedules") or ()] or None,
            concurrency_limit=ConcurrencyLimitConfig(**limit) if limit else None,
            work_pool_name=pool,
            work_queue_name=entry["work_pool"].get("work_queue_name"),
            job_variables=entry.get("job_variables") or {},
        )
        deployment.apply()
    except (ImportError, AttributeError, ValueError, TypeError, KeyError) as error:
        raise FarmError(
            f"deploy: deployment {entry['name']} ({entry['entrypoint']}) is refused",
            why=str(error).splitlines()[0],
        ) from error
    return deployment.full_name


def _schedule(row: dict[str, Any]) -> DeploymentScheduleCreate:
    return DeploymentScheduleCreate(
        schedule=CronSchedule(cron=row["cron"], timezone=row.get("timezone", "UTC")),
        active=row.get("active", True),
        slug=row.get("slug"),
        parameters=row.get("parameters") or {},
    )


def apply_automations(client: SyncPrefectClient, *, file: Path) -> list[str]:
    """Creates or updates each automation of the file, by name."""
    webhook = _webhook()
    names: list[str] = []
    for entry in _read_yaml(file.read_text("utf-8")):
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
