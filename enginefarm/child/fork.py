"""A fork of this process that runs in parallel, with what it has imported and nothing that it makes
later."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

from enginefarm.child.lifeline import LESS, die_with_parent


@contextmanager
def forked() -> Generator[ProcessPoolExecutor]:
    """One process, forked now, that takes functions of modules.

    Enter it before the process computes anything: threads of OpenMP do not survive a fork, and
    what waits for them would wait for ever. Leaving waits for nothing: it dies with this process.
    """
    fork = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(1, fork, _begin, (os.getpid(),))
    try:
        pool.submit(os.getpid)
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _begin(parent_pid: int) -> None:
    die_with_parent(parent_pid)
    os.nice(LESS)
