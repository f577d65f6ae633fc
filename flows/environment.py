"""Prefect's settings for a command that brings its own API. Import before prefect."""

from __future__ import annotations

import os

from enginefarm.settings import home

EPHEMERAL = {
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # A run that ends with its command has nobody to schedule, notify or count for.
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLI_PROMPT": "false",
    "DO_NOT_TRACK": "1",
}


def prepare(*, verbose: bool = False) -> None:
    """Fills in what the user has not set: an ephemeral API unless PREFECT_API_URL names one."""
    if not os.environ.get("PREFECT_API_URL"):
        folder = home() / "prefect"
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("PREFECT_HOME", str(folder))
    for name, value in EPHEMERAL.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO" if verbose else "CRITICAL")
