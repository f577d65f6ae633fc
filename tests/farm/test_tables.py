"""Prefect's tables, made at once, are those that its migrations make."""

from __future__ import annotations

import re
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from enginefarm.farm.server import tables


def parts(sql: str) -> dict[str, list[str]]:
    """Each statement's lines in one order: the migrations write constraints in any."""
    return {
        statement.strip().splitlines()[0].replace('"', ""): sorted(
            re.sub(r"\s+", " ", line).strip(" ,") for line in statement.splitlines()
        )
        for statement in re.split(r"(?m)^(?=(?:CREATE|INSERT) )", sql)
        if statement.strip()
    }


def test_they_are_the_tables_that_the_migrations_make(tmp_path: Path) -> None:
    made = tmp_path / "made.db"
    tables.create(made)
    by_migrations = parts(tables.migrated(tmp_path / "migrated.db"))
    assert len(by_migrations) > 100
    # What a newer Prefect has to add to them, its own migrations add.
    assert parts(tables.migrated(made)) == by_migrations


def test_servers_that_start_at_once_find_them_whole(tmp_path: Path) -> None:
    database = tmp_path / "home" / "prefect.db"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(tables.create, [database] * 8))
    assert [one.name for one in database.parent.iterdir()] == ["prefect.db"]
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
        connection.execute("DELETE FROM alembic_version")
        connection.commit()
    tables.create(database)  # one that exists is left alone
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT count(*) FROM alembic_version").fetchone() == (0,)


def test_a_folder_that_cannot_be_made_is_left_to_the_server(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    tables.create(tmp_path / "file" / "prefect.db")
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
