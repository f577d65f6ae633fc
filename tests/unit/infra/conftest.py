"""What the tests of infra/ share."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

import pytest

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

    def find(name: str) -> str:
        search = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
        found = shutil.which(name, path=search)
        if found is None and os.environ.get("CI"):
            pytest.fail(f"{name} is not installed, and CI has to run this")
        if found is None:
            pytest.skip(f"{name} is not installed")
        return found

    return find
