"""The server on SQLite: who reads and then writes waits for its turn, and is not refused."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa
from prefect.server.database.configurations import AioSqliteConfiguration

from enginefarm.farm.server import process

AT_ONCE = 5


def test_transactions_that_read_and_then_write_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = AioSqliteConfiguration.begin_transaction
    monkeypatch.setattr(AioSqliteConfiguration, "begin_transaction", begin)  # put back at the end
    process.begin_as_writers()
    database = AioSqliteConfiguration(f"sqlite+aiosqlite:///{tmp_path / 'some.db'}")

    async def count_one_more() -> None:
        async with (
            await database.session(await database.engine()) as session,
            database.begin_transaction(session),
        ):
            count = (await session.execute(sa.text("SELECT count FROM numbers"))).scalar_one()
            await asyncio.sleep(0.02)
            await session.execute(sa.text(f"UPDATE numbers SET count = {count + 1}"))

    async def counted() -> int:
        async with (await database.engine()).begin() as connection:
            await connection.execute(sa.text("CREATE TABLE numbers AS SELECT 0 AS count"))
        await asyncio.gather(*(count_one_more() for _ in range(AT_ONCE)))
        async with (await database.engine()).connect() as connection:
            found = await connection.execute(sa.text("SELECT count FROM numbers"))
            return int(found.scalar_one())

    assert asyncio.run(counted()) == AT_ONCE
