"""Commands that start at once make Prefect's empty database once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from enginefarm.farm.server import private

MAKE = "_make_tables"
GIVE = "_create_database"


def test_of_many_that_start_at_once_one_makes_the_tables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ENGINEFARM_HOME", str(tmp_path / "home"))
    made: list[Path] = []
    others_wait = threading.Event()

    def make(database: Path) -> None:
        made.append(database)
        others_wait.wait(0.2)
        database.write_bytes(b"tables")

    monkeypatch.setattr(private, MAKE, make)
    databases = [tmp_path / f"{number}.db" for number in range(4)]
    with ThreadPoolExecutor(len(databases)) as pool:
        list(pool.map(getattr(private, GIVE), databases))
    assert len(made) == 1
    assert {one.read_bytes() for one in databases} == {b"tables"}


def test_a_home_that_cannot_be_made_only_costs_the_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ENGINEFARM_HOME", str(tmp_path / "file" / "home"))

    def make(database: Path) -> None:
        database.write_bytes(b"tables")

    monkeypatch.setattr(private, MAKE, make)
    getattr(private, GIVE)(tmp_path / "one.db")
    assert (tmp_path / "one.db").read_bytes() == b"tables"
