"""Prefect's settings for our commands. Import before prefect."""

from __future__ import annotations

import json
import os
from pathlib import Path

from enginefarm.errors import FarmError, UsageError
from enginefarm.farm.server import address
from enginefarm.settings import current

COMMON = {
    # Prefect starts Pythons of its own with `-m`, which would look for modules in the folder
    # where somebody stands first: one called `flows` or `tasks` would hide ours.
    "PYTHONSAFEPATH": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLI_PROMPT": "false",
    "DO_NOT_TRACK": "1",
}

WORKER = {
    # How long a run waits on an idle worker, half of it on average.
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_WORKER_HEARTBEAT_SECONDS": "15",
    # What tells a run that is alive from one that was killed; 30 s is the least it takes.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "PREFECT_WORKER_ENABLE_CANCELLATION": "true",
    # The worker itself has looked (connection.py): a run need not ask again.
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "INFO",
}

CONTROL_QUERY_S = "0.5"
"""People wait for runs of the control pool, and a farm has one worker for it."""

SERVER = {
    "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_LOOP_SECONDS": "5",
    "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_CANCELLING_TIMEOUT_SECONDS": "90",
    "PREFECT_SERVER_SERVICES_FOREMAN_LOOP_SECONDS": "10",
    # A benchmark that waits for a worker with its GPU is scheduled, however long that takes.
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    # Prefect looks every five seconds for what a farm has a minute's time for: approvals that
    # nobody gave, schedules that have just been changed, clean-ups that a worker left undone.
    # A farm that waits is mostly busy with looking.
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_LOOP_SECONDS": "60",
    "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "60",
    "PREFECT_SERVER_SERVICES_CLEANUP_RECONCILER_LOOP_SECONDS": "30",
}

DATABASE = "ENGINEFARM_DATABASE_URL"

KEEP_RUNS_DAYS = "ENGINEFARM_KEEP_RUNS_DAYS"
DEFAULT_KEEP_DAYS = 30.0

EVENTS_S = 2 * 24 * 3600
HEARTBEATS_S = 3600
LONGEST_S = 100 * 365 * 24 * 3600
"""Events are for automations, which look back for minutes; most of them are heartbeats."""

SHORT = 16
"""Passwords with fewer characters are guessed."""


def prepare(*, verbose: bool = False) -> None:
    """For `build`, which has a private API (private.py) and uses nothing of a farm."""
    _set_defaults(COMMON)
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO" if verbose else "CRITICAL")


def prepare_client() -> None:
    """For commands that talk to a farm's server: PREFECT_API_URL, or this machine's."""
    _prefect_home()
    address.configure()
    _set_defaults(COMMON | {"PREFECT_LOGGING_LEVEL": "WARNING"})
    os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "false"


def prepare_worker(*, control: bool) -> None:
    """For a worker, and for the runs that it starts, which inherit its environment."""
    _set_defaults(WORKER | ({"PREFECT_WORKER_QUERY_SECONDS": CONTROL_QUERY_S} if control else {}))
    if os.environ.get("ENGINEFARM_LOG_FORMAT") == "json":
        _set_defaults(
            {"PREFECT_LOGGING_SETTINGS_PATH": str(Path(__file__).parents[1] / "logging.yaml")}
        )
    prepare_client()
    # Runs are forked from a new Python, which imports this code.
    ours = str(Path(__file__).resolve().parents[3])
    given = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    os.environ["PYTHONPATH"] = os.pathsep.join([ours, *(part for part in given if part != ours)])


def prepare_server(*, host: str, port: int, public_url: str | None = None) -> str:
    """For `enginefarm server`; returns the URL of its API as this machine reaches it.

    The server asks everyone for a password: PREFECT_SERVER_API_AUTH_STRING, else the one in the
    farm's home, which is made the first time. Pages of other sites may not use the API.
    Raises: FarmError for an empty password, and for a short one where other machines reach
    the server.
    """
    _prefect_home()
    own = os.environ.get(address.SERVER_PASSWORD)
    if own is None:
        own = os.environ.get(address.PASSWORD) or address.ensure_password()
    _require_password(own, host)
    os.environ[address.SERVER_PASSWORD] = own
    reached = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104 - compared only
    shown = f"[{reached}]" if ":" in reached else reached
    base = (public_url or f"http://{shown}:{port}").rstrip("/")
    os.environ["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] = base
    # The page asks the server that it came from: on any port, and from any machine.
    os.environ["PREFECT_UI_API_URL"] = "/api"
    _set_defaults(COMMON | SERVER | _vacuum())
    if os.environ.get(DATABASE):
        os.environ["PREFECT_API_DATABASE_CONNECTION_URL"] = database_url(os.environ[DATABASE])
    return f"http://{shown}:{port}/api"


def _vacuum() -> dict[str, str]:
    """Prefect's own cleaner of its database: how old runs and events get.

    Raises: UsageError for an invalid number of days, or one under an hour.
    """
    text = os.environ.get(KEEP_RUNS_DAYS) or str(DEFAULT_KEEP_DAYS)
    try:
        seconds = int(float(text) * 24 * 3600)
    except (ValueError, OverflowError):
        seconds = 0
    if not 3600 < seconds <= LONGEST_S:
        raise UsageError(
            f"{KEEP_RUNS_DAYS}: {text!r} is not a number of days between an hour and a century",
            fix=f"set it to how long runs are kept, such as {DEFAULT_KEEP_DAYS:g}, or unset it",
        )
    return {
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(seconds),
        "PREFECT_SERVER_EVENTS_RETENTION_PERIOD": f"PT{min(seconds, EVENTS_S)}S",  # ISO 8601
        "PREFECT_SERVER_SERVICES_DB_VACUUM_EVENT_RETENTION_OVERRIDES": json.dumps(
            {
                "prefect.flow-run.heartbeat": HEARTBEATS_S,
                "enginefarm.worker.heartbeat": HEARTBEATS_S,
            }
        ),
    }


def _require_password(password: str, host: str) -> None:
    if not password:
        raise FarmError(
            f"server: {address.SERVER_PASSWORD} is empty, and without a password anybody could run "
            "code on the farm",
            fix=f"unset it, and a password is written to {address.password_file()}",
        )
    if not address.loopback(host) and len(password) < SHORT:
        raise FarmError(
            f"server: other machines can reach --host {host}, and the password has only "
            f"{len(password)} characters",
            fix=f"set {address.SERVER_PASSWORD} to {SHORT} characters or more, or unset it",
        )


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
    os.environ.setdefault("PREFECT_HOME", str(current().home / "prefect"))
    # Prefect makes the last folder of it and no more.
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)


def _set_defaults(values: dict[str, str]) -> None:
    for name, value in values.items():
        os.environ.setdefault(name, value)
