"""Programs that tests need and pip cannot install: infra/system-packages.sh installs them."""

from __future__ import annotations

import os
import shutil
import sysconfig
from typing import NoReturn

import pytest


def program(*names: str, package: str) -> str:
    """The path of the first of these programs that is installed.

    Where none is, the test is skipped by name and counted; in CI it fails.
    """
    search = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    for name in names:
        if found := shutil.which(name, path=search):
            return found
    missing(package)


def missing(package: str) -> NoReturn:
    """Skips the test for want of a Debian package; fails it in CI, which has to run it."""
    if os.environ.get("CI"):
        pytest.fail(f"{package} is not installed, and CI has to run this")
    pytest.skip(f"{package} is not installed: apt-get install {package}")
