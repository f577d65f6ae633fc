"""The farm's Prefect server: reached, checked, and given its pools."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Any
from uuid import uuid4

import httpx
from packaging.version import InvalidVersion, Version
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import get_current_settings

from enginefarm.documents.gpus import gpu, table
from enginefarm.errors import FarmError
from enginefarm.farm.server import address
from enginefarm.farm.worker.card import CONTROL_POOL
from enginefarm.planning.plan import CROSS_POOL

MIN_SERVER = Version("3.8.0")
"""The first whose server cancels the children of a cancelled run by itself."""

POOL_TYPE = "enginefarm"
"""The worker type (worker/farm_worker.py): no other workers take runs of these pools."""

TEMPLATE: dict[str, Any] = {
    "job_configuration": {"env": {}},
    "variables": {"type": "object", "properties": {}},
}
"""Nothing: the worker says how a run is started. There are no variables: neither the person who
starts a run nor a deployment can make a worker run anything else, with other variables, or in
another folder."""


@contextmanager
def connected() -> Generator[SyncPrefectClient]:
    """A client of the server that PREFECT_API_URL names.

    Raises: FarmError when it does not answer, answers as no Prefect server does, or is too
    old; also when it goes away while the block runs.
    """
    url = get_current_settings().api.url or ""
    try:
        with get_client(sync_client=True) as client:
            _check(client, url)
            yield client
    except httpx.TransportError as error:
        raise FarmError(
            f"farm: the Prefect server at {url} does not answer",
            why=type(error).__name__,
            fix="start it (enginefarm server), or correct PREFECT_API_URL",
        ) from error


def asks_for_csrf_tokens(client: SyncPrefectClient) -> bool:
    """Whether the server takes changes only with a token, which each run has to ask for."""
    try:
        client.request("GET", "/csrf-token", params={"client": str(uuid4())})
    except PrefectHTTPStatusError as error:
        return error.response.status_code != HTTPStatus.UNPROCESSABLE_ENTITY
    return True


def ui_url() -> str:
    """Where the server's UI is, as this machine reaches it."""
    return (get_current_settings().api.url or "").removesuffix("/api")


def _check(client: SyncPrefectClient, url: str) -> None:
    try:
        text = str(client.request("GET", "/admin/version").json())
        version = Version(text)
    except (PrefectHTTPStatusError, ValueError, InvalidVersion) as error:
        if isinstance(error, PrefectHTTPStatusError) and error.response.status_code == 401:
            raise _unauthorized(url) from error
        raise FarmError(
            f"farm: {url} is not the API of a Prefect server",
            why=str(error).splitlines()[0],
            fix="PREFECT_API_URL ends in /api: http://host:4200/api",
        ) from error
    if version < MIN_SERVER:
        raise FarmError(
            f"farm: the Prefect server at {url} is {version}; {MIN_SERVER} or newer is needed",
            fix="update the server first, then its workers",
        )


def _unauthorized(url: str) -> FarmError:
    given = "the password was wrong" if os.environ.get(address.PASSWORD) else "none was given"
    return FarmError(
        f"farm: the Prefect server at {url} needs its password, and {given}",
        fix=f"set {address.PASSWORD} to what is in farm/password of the server's ENGINEFARM_HOME",
    )


def pool_of(label: str) -> str:
    """The work pool of a GPU label. Raises: GpuError for one that is not in gpus.toml."""
    return gpu(label).work_pool


def ensure_pool(client: SyncPrefectClient, name: str) -> None:
    """Creates the pool, or updates an existing one to the template of this version.

    It has no limit of its own: each worker takes as many runs as it was started for, and
    a second worker of a label means a second GPU.
    Raises: FarmError for a pool that is not ours.
    """
    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        wanted = WorkPoolCreate(
            name=name, type=POOL_TYPE, description=_description(name), base_job_template=TEMPLATE
        )
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(wanted)
        return
    if pool.type != POOL_TYPE:
        raise FarmError(
            f"farm: the work pool {name} is of type {pool.type}, not {POOL_TYPE}",
            why="it was made by hand, or by an older enginefarm",
            fix=f"delete it (prefect work-pool delete {name}), then enginefarm deploy",
        )
    if pool.base_job_template != TEMPLATE:
        client.update_work_pool(name, WorkPoolUpdate(base_job_template=TEMPLATE))


def _description(name: str) -> str:
    for label, row in table().items():
        if row.work_pool == name:
            return f"Builds and benchmarks for {label}, compute capability {row.compute_capability}"
    return {
        CONTROL_POOL: "Plans, exports, slims and calibrates recipes, and hands out builds",
        CROSS_POOL: "Cross-builds for labels that have no worker online",
    }.get(name, "enginefarm")


def gpu_pools(client: SyncPrefectClient) -> tuple[str, ...]:
    """The GPU pools that the server has."""
    names = [row.work_pool for row in table().values()]
    found = client.read_work_pools(
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=names))
    )
    return tuple(sorted(pool.name for pool in found))
