"""A run's outcomes -> benchmark rows, so that the tables know of failures and skips too."""

from __future__ import annotations

import datetime as dt
import platform
from collections.abc import Iterable
from importlib import import_module

from enginefarm.planning.outcome import Outcome
from enginefarm.store.engine_store import EngineStore
from enginefarm.tables.from_manifest import not_built, rows_from_manifest, writer_name
from enginefarm.tables.rows import BenchmarkRow
from enginefarm.tables.tables import BenchmarkTables


def preload() -> None:
    """Imports what `record` needs, which takes half a second."""
    for name in ("pyarrow.parquet", "pyarrow.compute"):
        import_module(name)


def record(
    store: EngineStore, outcomes: Iterable[Outcome], *, night: dt.date | None = None
) -> tuple[BenchmarkRow, ...]:
    """Appends a row for each engine built, rejected, failed or skipped; none for cached ones.

    night: today by default. Raises: what the store raises.
    """
    day = night or dt.datetime.now(dt.UTC).date()
    rows = tuple(row for outcome in outcomes for row in _rows(store, outcome, day))
    BenchmarkTables(store.objects).append(rows)
    return rows


def _rows(store: EngineStore, outcome: Outcome, night: dt.date) -> tuple[BenchmarkRow, ...]:
    if outcome.status == "cached":
        return ()
    if outcome.status == "built":
        manifest = store.manifest(outcome.spec_digest)
        return rows_from_manifest(manifest, night=night) if manifest else ()
    toolchain, _, build = outcome.toolchain.partition(" ")
    return (
        not_built(
            recipe=outcome.recipe,
            gpu=outcome.gpu,
            precision=outcome.precision,
            toolchain=toolchain,
            toolchain_build=build,
            outcome="skipped" if outcome.status == "skipped" else "failed",
            reason=outcome.reason or outcome.status,
            night=night,
            writer=writer_name(platform.node()),
            spec_digest=outcome.spec_digest or None,
        ),
    )
