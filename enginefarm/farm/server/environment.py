"""Prefect's settings for our commands. Import before prefect."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from enginefarm.settings import home

COMMON = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLI_PROMPT": "false",
    "DO_NOT_TRACK": "1",
}

EPHEMERAL = {
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}
"""For a command that brings its own API, with nobody to schedule or notify for."""

DEFAULT_API_URL = "http://127.0.0.1:4200/api"

WORKER = {
    # How long a run waits on an idle worker, half of it on average.
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_WORKER_HEARTBEAT_SECONDS": "15",
    # What tells a run that is alive from one that was killed; 30 s is the least it takes.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "PREFECT_WORKER_ENABLE_CANCELLATION": "true",
    "PREFECT_LOGGING_LEVEL": "INFO",
}

SERVER = {
    "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_LOOP_SECONDS": "5",
    "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_CANCELLING_TIMEOUT_SECONDS": "90",
    "PREFECT_SERVER_SERVICES_FOREMAN_LOOP_SECONDS": "10",
}

DATABASE = "ENGINEFARM_DATABASE_URL"


def prepare(*, verbose: bool = False) -> None:
    """Fills in what the user has not set: an ephemeral API unless PREFECT_API_URL names one."""
    if not os.environ.get("PREFECT_API_URL"):
        _prefect_home()
    _fill(COMMON | EPHEMERAL)
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO" if verbose else "CRITICAL")


def prepare_client() -> None:
    """For commands that talk to a farm's server: PREFECT_API_URL, or this machine's."""
    _prefect_home()
    _fill(COMMON | {"PREFECT_API_URL": DEFAULT_API_URL, "PREFECT_LOGGING_LEVEL": "WARNING"})
    os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "false"


def prepare_worker() -> None:
    """For a worker, and for the runs that it starts, which inherit its environment."""
    _fill(WORKER)
    if os.environ.get("ENGINEFARM_LOG_FORMAT") == "json":
        _fill({"PREFECT_LOGGING_SETTINGS_PATH": str(Path(__file__).parents[1] / "logging.yaml")})
    prepare_client()
    # Runs start as RUN_COMMAND: this Python, with this code.
    paths = os.environ.get("PATH", os.defpath).split(os.pathsep)
    _lead("PATH", str(Path(sys.executable).parent), paths)
    given = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    _lead("PYTHONPATH", str(Path(__file__).resolve().parents[3]), given)


def prepare_server() -> None:
    """For `enginefarm server`: one setting, ENGINEFARM_DATABASE_URL, chooses the database."""
    _prefect_home()
    _fill(COMMON | SERVER)
    if os.environ.get(DATABASE):
        os.environ["PREFECT_API_DATABASE_CONNECTION_URL"] = database_url(os.environ[DATABASE])


def database_url(url: str) -> str:
    """The same database with the asynchronous driver that Prefect needs named in the URL."""
    for plain, driven in (
        ("postgresql://", "postgresql+asyncpg://"),
        ("postgres://", "postgresql+asyncpg://"),
        ("sqlite://", "sqlite+aiosqlite://"),
    ):
        if url.startswith(plain):
            return driven + url.removeprefix(plain)
    return url


def _prefect_home() -> None:
    os.environ.setdefault("PREFECT_HOME", str(home() / "prefect"))
    # Prefect makes the last folder of it and no more.
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)


def _fill(values: dict[str, str]) -> None:
    for name, value in values.items():
        os.environ.setdefault(name, value)


def _lead(name: str, first: str, others: list[str]) -> None:
    os.environ[name] = os.pathsep.join([first, *(part for part in others if part != first)])
