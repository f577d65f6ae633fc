"""Whose password goes to which server, and which servers do not start."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from enginefarm.errors import FarmError, UsageError
from enginefarm.farm.server import address, environment

NAMES = (
    environment.KEEP_RUNS_DAYS,
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD",
    "PREFECT_SERVER_EVENTS_RETENTION_PERIOD",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED",
    address.API_URL,
    address.PASSWORD,
    address.SERVER_PASSWORD,
    "PREFECT_HOME",
    "PREFECT_SERVER_CORS_ALLOWED_ORIGINS",
    "PREFECT_UI_API_URL",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE",
    *environment.WORKER,
)


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ})
    for name in NAMES:
        os.environ.pop(name, None)
    os.environ["ENGINEFARM_HOME"] = str(tmp_path / "home")


def start(host: str = "127.0.0.1", **options: str) -> str:
    return environment.prepare_server(host=host, port=4871, public_url=options.get("public_url"))


def test_the_server_makes_a_password_that_only_its_user_reads_and_keeps_it() -> None:
    start()
    first = os.environ[address.SERVER_PASSWORD]
    assert len(first) > 30
    assert stat.S_IMODE(address.password_file().stat().st_mode) == 0o600
    assert stat.S_IMODE(address.folder().stat().st_mode) == 0o700
    del os.environ[address.SERVER_PASSWORD]
    start()
    assert os.environ[address.SERVER_PASSWORD] == first


@pytest.mark.parametrize(
    ("host", "password", "said"),
    [
        ("127.0.0.1", "", "is empty"),
        ("0.0.0.0", "", "is empty"),
        ("0.0.0.0", "admin:short", "only 11 characters"),
        ("farm.example", "admin:short", "only 11 characters"),
        ("::", "admin:short", "only 11 characters"),
    ],
)
def test_a_server_without_a_password_does_not_start(host: str, password: str, said: str) -> None:
    os.environ[address.SERVER_PASSWORD] = password
    with pytest.raises(FarmError, match=said):
        start(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "0.0.0.0"])
def test_a_server_with_a_password_starts(host: str) -> None:
    assert start(host).endswith(":4871/api")


@pytest.mark.parametrize(
    ("public_url", "origin"),
    [(None, "http://127.0.0.1:4871"), ("https://farm.example/", "https://farm.example")],
)
def test_only_the_servers_own_pages_may_use_it(public_url: str | None, origin: str) -> None:
    environment.prepare_server(host="0.0.0.0", port=4871, public_url=public_url)
    assert os.environ["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == origin
    assert os.environ["PREFECT_UI_API_URL"] == "/api", "the page asks where it came from"


def test_commands_on_the_servers_machine_find_it_and_its_password() -> None:
    address.save_url(start())
    del os.environ[address.SERVER_PASSWORD]
    environment.prepare_client()
    assert os.environ[address.API_URL] == "http://127.0.0.1:4871/api"
    assert os.environ[address.PASSWORD] == address.saved_password()


@pytest.mark.parametrize(
    ("url", "given"),
    [
        ("http://127.0.0.1:9999/api", True),
        ("http://localhost:4200/api", True),
        ("https://other.example/api", False),
        ("http://127.0.0.1.evil.example/api", False),
        ("http://[::1", False),
    ],
)
def test_a_server_elsewhere_does_not_learn_the_password(url: str, given: bool) -> None:
    address.ensure_password()
    os.environ[address.API_URL] = url
    environment.prepare_client()
    assert (address.PASSWORD in os.environ) is given


def test_the_environment_decides_before_the_file() -> None:
    address.ensure_password()
    os.environ[address.PASSWORD] = "farm:of-the-environment"
    environment.prepare_client()
    assert os.environ[address.PASSWORD] == "farm:of-the-environment"


def unwritable(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("a file, where a folder should be")


def empty(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "password").touch()


@pytest.mark.parametrize("broken", [unwritable, empty])
def test_a_home_that_cannot_hold_the_password_is_one_clear_error(
    broken: Callable[[Path], None],
) -> None:
    broken(address.folder())
    with pytest.raises(FarmError, match=str(address.folder())):
        address.ensure_password()


def understood(program: str) -> str:
    """What a fresh Python prints that has Prefect's settings as `s()` and this environment."""
    ended = subprocess.run(
        [
            *(sys.executable, "-c"),
            f"from prefect.settings import get_current_settings as s; {program}",
        ],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=True,
    )
    return ended.stdout.strip()


def kept(setting: str) -> str:
    return os.environ[f"PREFECT_SERVER_{setting}"]


def test_runs_and_events_are_kept_for_a_while_only_and_none_is_late_for_ever() -> None:
    os.environ[environment.KEEP_RUNS_DAYS] = "7"
    start()
    assert "flow_runs" in kept("SERVICES_DB_VACUUM_ENABLED")
    assert kept("SERVICES_DB_VACUUM_RETENTION_PERIOD") == str(7 * 24 * 3600)
    said = understood(
        "v = s().server; "
        "print(sorted(v.services.db_vacuum.enabled_vacuum_types), "
        "v.services.db_vacuum.retention_period, v.events.retention_period, "
        "v.services.db_vacuum.event_retention_overrides['prefect.flow-run.heartbeat'], "
        "v.services.late_runs.enabled, v.services.pause_expirations.loop_seconds, "
        "v.services.scheduler.recent_deployments_loop_seconds, "
        "v.services.cleanup_reconciler.loop_seconds)"
    )
    assert said == (
        "['events', 'flow_runs', 'orphans'] 7 days, 0:00:00 2 days, 0:00:00 1:00:00 False "
        "60.0 60.0 30.0"
    ), "as Prefect understands it"


@pytest.mark.parametrize("days", ["0", "-1", "nan", "inf", "a week", "1e99", "0.01"])
def test_a_number_of_days_that_is_none_is_refused(days: str) -> None:
    os.environ[environment.KEEP_RUNS_DAYS] = days
    with pytest.raises(UsageError, match=environment.KEEP_RUNS_DAYS):
        start()


@pytest.mark.parametrize(("control", "seconds"), [(True, 0.5), (False, 1.0)])
def test_the_control_worker_for_whose_runs_people_wait_asks_more_often(
    control: bool, seconds: float
) -> None:
    environment.prepare_worker(control=control)
    said = understood("print(s().worker.query_seconds, s().client.server_version_check_enabled)")
    assert said == f"{seconds} False", "as Prefect understands it"


def test_what_the_user_says_of_a_worker_comes_first() -> None:
    os.environ["PREFECT_WORKER_QUERY_SECONDS"] = "7"
    environment.prepare_worker(control=True)
    assert os.environ["PREFECT_WORKER_QUERY_SECONDS"] == "7"
