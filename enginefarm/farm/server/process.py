"""Prefect's server as a process; on SQLite, with its tables made at once (tables.py), and with
garbage collected in a thread of its own.

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
        if url.database and url.database != ":memory:" and not url.query:
            tables.create(Path(url.database))
    else:
        gc.set_threshold(*COLLECT)
        gc.enable()
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)


def collect_garbage_periodically() -> None:
    gc.disable()
    threading.Thread(target=_collect, name="collector", daemon=True).start()


def _collect() -> None:
    while True:
        time.sleep(COLLECT_S)
        gc.collect()


if __name__ == "__main__":
    main()
