"""`enginefarm build` and its own Prefect API: shared with nobody, and gone when the command is."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from enginefarm.errors import FarmError
from enginefarm.farm.server import address, private
from enginefarm.store.engine_store import EngineStore
from tests import tiny_recipe
from tests.farm.farm_fixture import COMMAND, command_line, until
from tests.processes import gone

MODULE = "enginefarm.farm.server.private"


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """Where the commands below make their temporary folders."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def start(recipe: Path, scratch: Path, **environment: str) -> subprocess.Popen[str]:
    own = {name: text for name, text in os.environ.items() if not name.startswith("PREFECT_")}
    return subprocess.Popen(
        [*COMMAND, "build", str(recipe), "--json"],
        env={**own, "TMPDIR": str(scratch), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_builds_at_once_share_nothing_and_leave_a_farm_alone(
    store_environment: EngineStore, tmp_path: Path, scratch: Path
) -> None:
    farms = {
        "PREFECT_HOME": str(tmp_path / "farms"),
        "PREFECT_API_URL": "http://127.0.0.1:9/api",
        "ENGINEFARM_HOME": str(tmp_path / "home"),
    }
    recipes = [
        tiny_recipe.write(tmp_path / name, name=name, salt=name, gpus=["t4"], precisions=["fp16"])
        for name in ("one", "two", "three")
    ]
    started = [start(recipe, scratch, **farms) for recipe in recipes]
    for process in started:
        _, said = process.communicate(timeout=400)
        assert process.returncode == 0, said
    assert {one.recipe for one in store_environment.manifests()} == {"one", "two", "three"}
    assert not (tmp_path / "farms").exists()
    assert not list(scratch.glob("enginefarm-api-*"))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_build_that_is_stopped_leaves_no_server_and_no_folder(
    store_environment: EngineStore, tmp_path: Path, scratch: Path, how: signal.Signals
) -> None:
    recipe = tiny_recipe.write(tmp_path / "recipe", gpus=["t4"], precisions=["fp16"])
    build = start(recipe, scratch)
    servers: list[psutil.Process] = []

    def there() -> bool:
        assert build.poll() is None, build.communicate()
        servers[:] = [
            child
            for child in psutil.Process(build.pid).children()
            if MODULE in " ".join(command_line(child))
        ]
        return bool(servers) and bool(list(scratch.glob("enginefarm-api-*/prefect.db")))

    until(there, "the build has a server", pause_s=0.02)
    build.send_signal(how)
    build.communicate(timeout=60)
    until(lambda: gone(servers[0]), "the server goes with it", 20)
    assert not list(scratch.glob("enginefarm-api-*"))


def test_a_server_that_does_not_start_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ})
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(FarmError, match="did not start"), private.private_api() as api:
        api.wait()


def test_a_machine_without_room_for_it_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "not-there"))
    with pytest.raises(FarmError, match="temporary folder"), private.private_api():
        pass


def test_nothing_of_a_farm_reaches_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = {
        address.API_URL: "https://farm.example/api",
        address.PASSWORD: "farm:theirs",
        address.SERVER_PASSWORD: "farm:theirs",
        "PREFECT_API_DATABASE_CONNECTION_URL": "postgresql+asyncpg://farm.example/prefect",
        "PREFECT_SERVER_DATABASE_HOST": "farm.example",
    }
    monkeypatch.setattr(os, "environ", {**os.environ, **theirs})
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with private.private_api():
        seen = " ".join(os.environ.values())
        assert os.environ[address.API_URL].startswith("http://127.0.0.1:")
    assert "theirs" not in seen
    assert "farm.example" not in seen
