"""What the environment decides, and what it must not be."""

from __future__ import annotations

import getpass
import os

import psutil
import pytest

from enginefarm import settings
from enginefarm.errors import UsageError


def test_a_builders_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENGINEFARM_BUILD_MEMORY_MIB", "ENGINEFARM_BUILD_TIMEOUT_S"):
        monkeypatch.delenv(name, raising=False)
    found = settings.build_limits()
    assert found.timeout_s == 3600
    assert 1 << 28 < found.memory_bytes < psutil.virtual_memory().total
    monkeypatch.setenv("ENGINEFARM_BUILD_MEMORY_MIB", "2048")
    monkeypatch.setenv("ENGINEFARM_BUILD_TIMEOUT_S", "1.5")
    assert settings.build_limits() == settings.BuildLimits(timeout_s=1.5, memory_bytes=2 << 30)


@pytest.mark.parametrize("value", ["0", "-1", "an hour"])
def test_a_limit_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ENGINEFARM_BUILD_TIMEOUT_S", value)
    with pytest.raises(UsageError, match=f"ENGINEFARM_BUILD_TIMEOUT_S: '{value}'"):
        settings.build_limits()


def test_a_container_whose_user_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("uid not found: 10001")

    monkeypatch.setattr(getpass, "getuser", nameless)
    monkeypatch.delenv("ENGINEFARM_USER", raising=False)
    assert settings.user() == f"uid {os.getuid()}"
    monkeypatch.setenv("ENGINEFARM_USER", "ci")
    assert settings.user() == "ci"
