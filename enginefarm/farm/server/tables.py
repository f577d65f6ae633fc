"""Prefect's tables in a new SQLite database, without the five seconds that its migrations take.

    python -m enginefarm.farm.server.tables > enginefarm/farm/server/tables.sql

tables.sql is what the migrations of the oldest Prefect that we allow leave in an empty database,
with their revision. The server runs the migrations that its own Prefect added since then.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing, suppress
from pathlib import Path

SQL = Path(__file__).with_name("tables.sql")


def create(database: Path) -> None:
    """Makes the database with Prefect's tables, unless the file exists.

    Servers that start at the same time find it whole or not at all. Where it cannot be made, the
    server's migrations make the tables, or say why they cannot.
    """
    if database.exists():
        return
    with suppress(OSError, sqlite3.Error):
        database.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tables-", dir=database.parent) as folder:
            new = Path(folder) / "new.db"
            with closing(sqlite3.connect(new)) as connection:
                connection.executescript(SQL.read_text("utf-8"))
            database.hardlink_to(new)


def migrated(database: Path) -> str:
    """The SQL of a SQLite database after the migrations of the Prefect that is installed."""
    url = f"sqlite+aiosqlite:///{database}"
    subprocess.run(
        [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"],
        env={**os.environ, "PREFECT_API_DATABASE_CONNECTION_URL": url},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    with closing(sqlite3.connect(database)) as connection:
        lines = "\n".join(connection.iterdump()).splitlines()
    return "".join(f"{line.rstrip()}\n" for line in lines)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        sys.stdout.write(migrated(Path(scratch) / "prefect.db"))
