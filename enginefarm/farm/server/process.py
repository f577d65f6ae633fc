"""Prefect's server as a process; on SQLite, with its tables made at once (tables.py), with each
transaction begun as one that writes, and with garbage collected in a separate thread.

Prefect begins most transactions as ones that read. SQLite refuses the first write of such a
transaction ("database is locked") if another one has written since it began to read, and a client
that was refused waits for more than two seconds. One that begins as a writer waits for its turn.

A statement that SQLite refuses ("database is locked") leaves a cursor in a reference cycle.
Python's collector then runs on the event loop's thread, resets that cursor and waits for the
connection's mutex while it holds the GIL. If the connection is in SQLite's busy wait, the whole
server stops for a minute, the holder of the database cannot release it, and the next statement is
refused too. So on SQLite garbage is collected every COLLECT_S seconds in its own thread.
"""

from __future__ import annotations

import gc
import runpy
import threading
import time
from pathlib import Path
from typing import Any

from enginefarm.child import COLLECT
from enginefarm.farm.server import tables

COLLECT_S = 120.0
"""A busy server grows by about 1 MiB a second between two collections."""


def main() -> None:
    gc.disable()  # also on PostgreSQL, until Prefect is imported

    from prefect.server.database import provide_database_interface
    from sqlalchemy import make_url

    url = make_url(provide_database_interface().database_config.connection_url)
    if url.get_backend_name() == "sqlite":
        collect_garbage_periodically()
        begin_as_writers()
        if url.database and url.database != ":memory:" and not url.query:
            tables.create(Path(url.database))
    else:
        gc.set_threshold(*COLLECT)
        gc.enable()
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)


def begin_as_writers() -> None:
    """Makes SQLite's transactions take the database's lock when they begin, whatever they do."""
    from prefect.server.database.configurations import AioSqliteConfiguration

    begin = AioSqliteConfiguration.begin_transaction

    def begin_to_write(*arguments: Any, **_: Any) -> Any:
        return begin(*arguments, with_for_update=True)

    AioSqliteConfiguration.begin_transaction = begin_to_write


def collect_garbage_periodically() -> None:
    gc.disable()
    threading.Thread(target=_collect, name="collector", daemon=True).start()


def _collect() -> None:
    while True:
        time.sleep(COLLECT_S)
        gc.collect()


if __name__ == "__main__":
    main()
