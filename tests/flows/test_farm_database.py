"""The same farm on either database, by one setting."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.environment import database_url
from tests.flows import tiny_recipe
from tests.flows.farm_fixture import farm_of


def test_sqlite_is_the_default_and_serves_one_person(tmp_path: Path) -> None:
    """The shared farm of the other tests runs on PostgreSQL where that is installed."""
    with farm_of(tmp_path / "farm", "a100", database=None) as farm:
        tiny_recipe.write(farm.recipes / "one", gpus=["a100"], precisions=["fp16"])
        run = farm.run("build-model/build-model", recipe="one")
        assert run.state.is_completed(), run.state.message
        assert (farm.root / "prefect" / "prefect.db").is_file()
        assert [one.spec.label for one in farm.store.manifests("tiny")] == ["a100/fp16"]


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
