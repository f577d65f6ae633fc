"""Prefect's server as a process; on SQLite with a garbage collector that waits.

A statement that SQLite refuses ("database is locked") leaves a cursor in a reference cycle.
Python's collector runs wherever the next object is made, which is on the event loop's thread. It
resets that cursor, waits for the connection's mutex, and keeps the interpreter's lock: when the
connection is in SQLite's busy wait, the server stands still for that minute, who holds the
database cannot let go of it, and the next statement is refused. So there garbage is collected
now and then, instead of at every turn.
"""

from __future__ import annotations

import gc
import os
import runpy
import threading
import time

DATABASE = "PREFECT_API_DATABASE_CONNECTION_URL"
COLLECT_S = 120.0
"""A busy server grows by about 1 MiB a second between two collections."""


def main() -> None:
    if not os.environ.get(DATABASE, "sqlite").startswith("postgresql"):
        collect_garbage_now_and_then()
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)


def collect_garbage_now_and_then() -> None:
    gc.disable()
    threading.Thread(target=_collect, name="collector", daemon=True).start()


def _collect() -> None:
    while True:
        time.sleep(COLLECT_S)
        gc.collect()


if __name__ == "__main__":
    main()
