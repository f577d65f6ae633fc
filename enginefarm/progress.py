"""Progress out of long steps, without the steps knowing who watches."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol


class Progress(Protocol):
    """Receives where a step stands. `total` None: running, length unknown."""

    def __call__(self, step: str, done: float, total: float | None, note: str = "") -> None: ...


def silent(step: str, done: float, total: float | None, note: str = "") -> None:
    """The sink of those who do not watch."""


SINK: ContextVar[Progress] = ContextVar("enginefarm_progress", default=silent)
"""Set by the command line or a Prefect task around the work; read with `report`."""


def report(step: str, done: float, total: float | None, note: str = "") -> None:
    SINK.get()(step, done, total, note)
