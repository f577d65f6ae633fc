"""What the tests of infra/ share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.programs import program

INFRA = Path(__file__).parents[3] / "infra"


@pytest.fixture(scope="session")
def infra() -> Path:
    return INFRA


@pytest.fixture(scope="session")
def versions() -> dict[str, str]:
    lines = (INFRA / "versions.env").read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@pytest.fixture(scope="session")
def tool() -> object:
    """Finds a program. Where it is not installed the test is skipped, in CI it fails."""

    return lambda name: program(name, package=name)
