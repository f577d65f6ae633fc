"""Times the report: 100 models × 6 GPUs × 2 precisions, 30 nights, read back from real S3.

    python benchmarks/report.py [--models 100] [--keep report.html]

Timings are drawn from the measured ones in `benchmarks/data`, so the lines look like lines;
only the seconds printed are results.
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import machine, scratch
from benchmarks.figures import Figure
from benchmarks.scratch import GPUS, LAST_NIGHT, PRECISIONS
from enginefarm.report import REPORT_COLUMNS, assemble, render
from enginefarm.store import s3
from enginefarm.tables.rows import STABLE_COV, BenchmarkRow
from enginefarm.tables.tables import BenchmarkTables

SPEED = {"t4": 1.0, "a10g": 0.55, "a100": 0.3, "l4": 0.7, "l40s": 0.3, "h100": 0.18}


def nights_of(model: str, nights: int, sessions: list[list[float]]) -> Iterator[BenchmarkRow]:
    """Rows of one model, oldest first. Digests are of made-up bytes."""
    rng = random.Random(model)
    scale = rng.uniform(0.2, 3)
    for back in reversed(range(nights)):
        night = LAST_NIGHT - dt.timedelta(days=back)
        for gpu in GPUS:
            for precision in PRECISIONS:
                timings = rng.choice(sessions)
                factor = scale * SPEED[gpu] * (0.62 if precision == "int8" else 1)
                sample = sorted(value * factor for value in rng.choices(timings, k=len(timings)))
                middle = statistics.median(sample)
                cov = statistics.pstdev(sample) / statistics.fmean(sample)
                digest = hashlib.sha256(f"{model}{gpu}{precision}".encode()).hexdigest()
                yield BenchmarkRow(
                    date=night,
                    measured_at=dt.datetime.combine(night, dt.time(3), dt.UTC),
                    writer=f"worker-{gpu}",
                    recipe=model,
                    outcome="measured",
                    runtime="tensorrt",
                    precision=precision,
                    gpu=gpu,
                    spec_digest=digest,
                    engine_digest=digest,
                    toolchain="tensorrt",
                    toolchain_build="10.16.1.11",
                    harness="enginefarm/1",
                    latency_ms_median=middle,
                    latency_ms_p99=sample[-1],
                    latency_cov=cov,
                    cov_verdict="stable" if cov <= STABLE_COV else "unstable",
                    throughput_samples_per_s=1000 / middle,
                    device_verification="passed" if gpu != "h100" else "pending",
                    verified_on="device" if gpu != "h100" else "graph",
                    cosine_min=0.9999 if precision == "fp16" else 0.997,
                    relative_l2_max=0.0008 if precision == "fp16" else 0.045,
                    size_bytes=round(1e7 * scale),
                    build_seconds=40 * scale,
                )


def measured_sessions() -> list[list[float]]:
    import pyarrow.parquet as pq

    table = pq.read_table(scratch.TIMINGS).to_pandas()
    groups: defaultdict[object, list[float]] = defaultdict(list)
    for row in table.itertuples():
        groups[row.model, row.session].append(row.latency_ms)
    found = list(groups.values())
    found.sort(key=lambda s: statistics.pstdev(s) / statistics.fmean(s))
    chosen = found[: max(3, len(found) // 3)]  # the calmest third: one scale for all lines
    return [[value / statistics.median(s) for value in s] for s in chosen]


def clocks() -> tuple[float, float]:
    """Wall and this process' CPU seconds: the second tells what a crowded machine hides."""
    return time.perf_counter(), time.process_time()


def fill(objects: s3.ObjectStore, models: int, nights: int, sessions: list[list[float]]) -> None:
    """The store as `bench compact` leaves it: one file a night."""
    by_night: defaultdict[dt.date, list[BenchmarkRow]] = defaultdict(list)
    for index in range(models):
        for row in nights_of(f"model-{index:03}", nights, sessions):
            by_night[row.date].append(row)
    for night, rows in by_night.items():
        scratch.put_compacted(objects, night, rows)


def main(arguments: Sequence[str] | None = None) -> list[Figure]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--nights", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="Write the page here.")
    args = parser.parse_args(arguments)
    sessions = measured_sessions()
    seconds: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    page, count = "", 0
    with scratch.objects() as objects:
        tables = BenchmarkTables(objects)
        fill(objects, args.models, args.nights, sessions)
        for _ in range(args.repeats):
            marks = [clocks()]
            rows = tables.rows(None, REPORT_COLUMNS)
            marks.append(clocks())
            data = assemble(rows, title="Engine farm", store="s3://bench")
            marks.append(clocks())
            page, count = render(data), len(rows)
            marks.append(clocks())
            for name, first, last in (
                ("read", 0, 1),
                ("judge", 1, 2),
                ("draw", 2, 3),
                ("whole", 0, 3),
            ):
                spent = [b - a for a, b in zip(marks[first], marks[last], strict=True)]
                seconds[name].append((spent[0], spent[1]))
    print(machine.described("jinja2", "pyarrow"), "\n")
    size = (
        f"{args.models} models × {len(GPUS)} GPUs × {len(PRECISIONS)} precisions "
        f"× {args.nights} nights"
    )
    print(f"{size} = {count:,} rows; page {len(page.encode()) / 1e6:.1f} MB\n")
    print("| step | median s | of CPU |\n|---|---:|---:|")
    medians: dict[str, float] = {}
    for name, values in seconds.items():
        wall, cpu = (statistics.median(part) for part in zip(*values, strict=True))
        medians[name] = wall
        print(f"| {name} | {wall:.2f} | {cpu:.2f} |")
    if args.keep:
        args.keep.write_text(page, "utf-8")
    return [Figure(f"report of {size}", medians["whole"], "s", at_most=5)]


if __name__ == "__main__":
    main()
