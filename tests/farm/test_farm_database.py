"""The same farm on either database, by one setting."""

from __future__ import annotations

from pathlib import Path

import pytest

from enginefarm.farm.server.environment import database_url
from tests import tiny_recipe
from tests.farm.farm_fixture import farm_of


def test_sqlite_is_the_default_and_serves_one_person(tmp_path: Path) -> None:
    """The shared farm of the other tests runs on PostgreSQL where that is installed.

    Three recipes at once on three workers: enough for SQLite to refuse statements, after
    which the server once stood still for good (enginefarm/farm/server/process.py).
    """
    names = ["one", "two", "three"]
    with farm_of(tmp_path / "farm", "t4", "a100", "l4", database=None) as farm:
        for name in names:
            tiny_recipe.write(farm.recipes / name, name=name, salt=name, precisions=["fp16"])
        ids = [farm.submit("build-model/build-model", recipe=name) for name in names]
        for one in ids:
            run = farm.wait(one)
            assert run.state.is_completed(), run.state.message
        assert (farm.root / "prefect" / "prefect.db").is_file()
        for name in names:
            assert len(list(farm.store.manifests(name))) == 3


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgresql://me@db/farm", "postgresql+asyncpg://me@db/farm"),
        ("postgres://me@db/farm", "postgresql+asyncpg://me@db/farm"),
        ("sqlite:////srv/prefect.db", "sqlite+aiosqlite:////srv/prefect.db"),
        ("postgresql+asyncpg://me@db/farm", "postgresql+asyncpg://me@db/farm"),
    ],
)
def test_the_url_needs_no_driver(given: str, used: str) -> None:
    assert database_url(given) == used
