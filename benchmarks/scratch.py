"""A real S3 server for the time of a benchmark, and nights of benchmark rows in it."""

from __future__ import annotations

import datetime as dt
import hashlib
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from enginefarm.store import embedded, s3
from enginefarm.tables import parquet as rows_parquet
from enginefarm.tables.rows import BenchmarkRow
from enginefarm.tables.tables import EVERY_RECIPE, PREFIX

GPUS = ("t4", "a10g", "a100", "l4", "l40s", "h100")
PRECISIONS = ("fp16", "int8")
LAST_NIGHT = dt.date(2026, 11, 22)
TIMINGS = Path(__file__).parent / "data" / "ort_crowded.parquet"
"""Measured latencies, from which made-up rows draw theirs."""


@contextmanager
def objects() -> Generator[s3.ObjectStore]:
    with tempfile.TemporaryDirectory(prefix="enginefarm-bench-") as folder:
        server = embedded.start(Path(folder))
        try:
            yield s3.connect(
                f"s3://{embedded.BUCKET}/bench",
                endpoint=server.endpoint,
                credentials=server.credentials,
            )
        finally:
            embedded.stop(Path(folder))


def put_compacted(store: s3.ObjectStore, night: dt.date, rows: list[BenchmarkRow]) -> None:
    """A night as `bench compact` leaves it: one file."""
    data = rows_parquet.encode(rows)
    digest = hashlib.sha256(data).hexdigest()
    store.put(f"{PREFIX}date={night}/recipe={EVERY_RECIPE}/night-{digest}.parquet", data)
