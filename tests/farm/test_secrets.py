"""A whole build with planted secrets; then they are looked for in everything that it left."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from enginefarm.child.process import child_environment
from enginefarm.store import embedded, s3
from enginefarm.store.embedded import Server
from enginefarm.store.engine_store import EngineStore
from tests import tiny_recipe

PLANTED = {
    "ENGINEFARM_TEST_TOKEN": "planted-token-4f1c9d",
    "HF_TOKEN": "planted-hub-token-77aa01",
    "DATABASE_URL": "postgresql://user:planted-password-93be@host/db",
    "ENGINEFARM_WEBHOOK_URL": "https://hooks.example/planted-hook-5510",
}

KEEPING = """
import sqlite3, sys
from enginefarm.cli import main
from enginefarm.farm.server.private import PrivateApi

kept = sys.argv.pop(1)
stop = PrivateApi.stop

def stop_later(api):
    from prefect.logging.handlers import APILogWorker
    APILogWorker.drain_all(timeout=20)
    sqlite3.connect(api._log.with_name("prefect.db")).backup(sqlite3.connect(kept))
    stop(api)

PrivateApi.stop = stop_later
main()
"""
"""The command line, and a copy of its database, which goes with it."""


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory, s3_server: Server) -> dict[str, bytes]:
    """Everything that a build wrote anywhere: output, store, database, files."""
    folder = tmp_path_factory.mktemp("secrets")
    recipe = tiny_recipe.write(folder / "recipe", gpus=["t4"], precisions=["fp16"])
    store = EngineStoreAt(s3_server)
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "AWS_"))},
        **PLANTED,
        **store.environment,
        "ENGINEFARM_HOME": str(folder / "home"),
        "ENGINEFARM_CACHE": str(folder / "cache"),
        "PREFECT_LOGGING_TO_API_ENABLED": "true",
        "PREFECT_LOGGING_LEVEL": "DEBUG",
    }
    done = subprocess.run(
        [
            *(sys.executable, "-P", "-c", KEEPING, str(folder / "prefect.db")),
            *("build", str(recipe), "--verbose", "--json"),
        ],
        env=environment,
        capture_output=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    found = {"standard output": done.stdout, "standard error": done.stderr}
    found |= {f"store: {key}": data for key, data in store.objects()}
    found |= {
        f"file: {path.relative_to(folder)}": path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }
    database = folder / "prefect.db"
    found["database"] = dump(database)
    return found


class EngineStoreAt:
    """A prefix of the real server, its key in the environment as a user would have it."""

    def __init__(self, server: Server) -> None:
        self.url = f"s3://{embedded.BUCKET}/secrets-test"
        self.server = server
        self._store = EngineStore(
            s3.connect(self.url, endpoint=server.endpoint, credentials=server.credentials),
            self.url,
        )
        self.environment = {
            "ENGINEFARM_STORE": self.url,
            "AWS_ENDPOINT_URL": server.endpoint,
            "AWS_ACCESS_KEY_ID": server.credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": server.credentials.secret_key,
        }

    def objects(self) -> list[tuple[str, bytes]]:
        objects = self._store.objects
        found = []
        for info in objects.list(""):
            read = objects.get(info.key)
            head = objects.head(info.key)
            assert read is not None
            assert head is not None
            found.append((info.key, read[0] + repr(head.metadata).encode()))
        return found


def dump(database: Path) -> bytes:
    """Every row of every table, as SQL: blobs and JSON too."""
    assert database.is_file(), "the ephemeral server kept its state somewhere else"
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        return "\n".join(connection.iterdump()).encode()


def holding(left: dict[str, bytes], mark: str) -> list[str]:
    return [where for where, data in left.items() if mark.encode() in data]


def test_the_run_left_what_is_searched(left: dict[str, bytes]) -> None:
    """The search below is worth something only if all of this is there."""
    assert any(where.startswith("store: manifests/") for where in left)
    assert any(where.startswith("store: blobs/") for where in left)
    assert b"build-model" in left["database"]
    assert b"flow_run" in left["database"]
    assert b"tiny" in left["standard output"]
    assert holding(left, "t4")


@pytest.mark.parametrize("mark", list(PLANTED.values()))
def test_a_planted_secret_is_nowhere(left: dict[str, bytes], mark: str) -> None:
    assert holding(left, mark) == []


def test_the_stores_own_key_is_nowhere(left: dict[str, bytes], s3_server: Server) -> None:
    assert holding(left, s3_server.credentials.secret_key) == []
    assert holding(left, s3_server.credentials.access_key) == []


def test_the_builder_sees_none_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-too")
    said = repr(child_environment(tmp_path))
    assert "planted" not in said
