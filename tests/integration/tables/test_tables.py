"""The benchmark tables on a real S3 server."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sample_manifest import make_manifest
from sample_rows import NIGHT, make_row

import enginefarm
from enginefarm.cli import run
from enginefarm.errors import CorruptBlob
from enginefarm.farm import outcome_rows
from enginefarm.planning.outcome import Outcome, of_manifest
from enginefarm.report import nightly
from enginefarm.store import s3
from enginefarm.store.engine_store import EngineStore
from enginefarm.tables import parquet as rows_parquet
from enginefarm.tables.filter import RowFilter
from enginefarm.tables.tables import PREFIX, BenchmarkTables


@pytest.fixture
def tables(store: EngineStore) -> BenchmarkTables:
    return BenchmarkTables(store.objects)


def keys(tables: BenchmarkTables) -> list[str]:
    """Files of the tables; what is beside them, such as the newest speeds, is not one."""
    return [info.key for info in tables.objects.list(f"{PREFIX}date=")]


def test_appending_twice_writes_once(tables: BenchmarkTables) -> None:
    rows = [make_row(i) for i in range(3)]
    assert tables.append(rows) == tables.append(rows)
    assert len(keys(tables)) == 3
    assert tables.rows() == rows


def test_one_night_is_one_listing_prefix(tables: BenchmarkTables) -> None:
    tables.append([make_row(i, recipe=recipe) for i in range(3) for recipe in ("a", "b")])
    night = [key for key in keys(tables) if key.startswith(f"{PREFIX}date={NIGHT}/")]
    assert sorted(key.split("/")[2] for key in night) == ["recipe=a", "recipe=b"]
    assert len(tables.rows(RowFilter(since=NIGHT, until=NIGHT))) == 2


class Counting(s3.ObjectStore):
    """The real client, which also notes what it fetched."""

    fetched: list[str]

    def get(self, key: str) -> tuple[bytes, str] | None:
        self.fetched.append(key)
        return super().get(key)


def test_filters_on_night_and_recipe_fetch_no_other_file(tables: BenchmarkTables) -> None:
    tables.append([make_row(i, recipe=recipe) for i in range(5) for recipe in ("a", "b")])
    objects = tables.objects
    counting = Counting(objects.client, objects.bucket, objects.prefix)
    counting.fetched = []
    where = RowFilter.of(recipe="b", since=NIGHT, until=NIGHT.replace(day=21))
    assert len(BenchmarkTables(counting).rows(where)) == 2
    assert len(counting.fetched) == 2


WORKER = """
import os, sys
from sample_rows import make_row
from enginefarm.store import open_store
from enginefarm.tables.tables import BenchmarkTables

tables = BenchmarkTables(open_store().objects)
for night in range(3):
    tables.append([make_row(night, writer=sys.argv[1], batch=batch) for batch in range(1, 6)])
"""


def test_many_workers_append_at_once_and_no_row_is_lost(store_environment: EngineStore) -> None:
    tests = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": f"{tests}:{Path(tests).parent}"}
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, f"w{number}"], env=environment)
        for number in range(6)
    ]
    assert [worker.wait() for worker in workers] == [0] * 6
    rows = BenchmarkTables(store_environment.objects).rows()
    assert len(rows) == 6 * 3 * 5
    assert len({row.row_id for row in rows}) == len(rows)


def test_compaction_changes_no_answer(tables: BenchmarkTables) -> None:
    tables.append([make_row(recipe=r, writer=w) for r in ("a", "b", "c") for w in ("w1", "w2")])
    before = tables.rows()
    assert tables.compact(NIGHT) == 6
    assert len(keys(tables)) == 1
    assert tables.rows() == before
    assert [row.recipe for row in tables.rows(RowFilter.of(recipe="b"))] == ["b", "b"]
    assert tables.compact(NIGHT) == 0
    tables.append([make_row(recipe="late")])
    assert tables.compact(NIGHT) == 2
    assert len(tables.rows()) == 7


def test_compaction_loses_no_column_of_a_newer_version(tables: BenchmarkTables) -> None:
    tables.append([make_row(recipe="a"), make_row(recipe="b")])
    table = pq.read_table(pa.BufferReader(rows_parquet.encode([make_row(recipe="c")])))
    data = rows_parquet.write(table.append_column("energy_j", pa.array([1.5])))
    key = f"{PREFIX}date={NIGHT}/recipe=c/w1-{hashlib.sha256(data).hexdigest()}.parquet"
    tables.objects.put(key, data)
    assert tables.compact(NIGHT) == 2
    found = tables.objects.get(key)
    assert found is not None
    assert found[0] == data
    assert {row.recipe for row in tables.rows()} == {"a", "b", "c"}


def test_readers_and_writers_race_with_compaction_and_every_row_is_seen_once(
    tables: BenchmarkTables,
) -> None:
    tables.append([make_row(recipe=f"r{i}") for i in range(12)])
    stop = threading.Event()

    def compact() -> None:
        while not stop.is_set():
            tables.compact(NIGHT)

    def write(number: int) -> None:
        for i in range(8):
            tables.append([make_row(recipe="late", writer=f"w{number}", batch=i + 1)])

    counts: list[int] = []
    with ThreadPoolExecutor(5) as pool:
        compactors = [pool.submit(compact) for _ in range(2)]
        writers = [pool.submit(write, number) for number in range(2)]
        while not all(writer.done() for writer in writers):
            rows = tables.rows()
            assert len({row.row_id for row in rows}) == len(rows)
            assert sum(row.recipe != "late" for row in rows) == 12
            counts.append(len(rows))
        stop.set()
        for done in (*compactors, *writers):
            done.result()
    assert counts == sorted(counts)
    assert len(tables.rows()) == 12 + 16


def test_a_changed_file_is_refused_by_name(tables: BenchmarkTables) -> None:
    (key,) = tables.append([make_row()])
    data, _ = tables.objects.get(key) or (b"", "")
    tables.objects.put(key, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CorruptBlob, match="does not match the digest in its name"):
        tables.rows()


def test_stray_objects_under_the_prefix_are_left_alone(tables: BenchmarkTables) -> None:
    tables.append([make_row()])
    tables.objects.put(f"{PREFIX}notes.txt", b"mine")
    assert len(tables.rows()) == 1


def test_the_python_call_gives_a_filtered_frame(store_environment: EngineStore) -> None:
    tables = BenchmarkTables(store_environment.objects)
    tables.append([make_row(i, gpu=gpu) for i in range(3) for gpu in ("t4", "l4", "a100")])
    frame = enginefarm.benchmarks(gpu=["t4", "l4"], since="2026-11-21")
    assert len(frame) == 4
    assert set(frame["gpu"]) == {"t4", "l4"}
    narrow = enginefarm.benchmarks(columns=["gpu", "latency_ms_median"])
    assert list(narrow.columns) == ["gpu", "latency_ms_median"]
    assert narrow["latency_ms_median"].mean() == 2.0


def test_bench_table_as_csv_markdown_and_json(
    store_environment: EngineStore,
    capsys: pytest.CaptureFixture[str],
) -> None:
    BenchmarkTables(store_environment.objects).append(
        [make_row(), make_row(recipe="other"), make_row(outcome="failed", reason="a|b\nc")]
    )
    assert run(["bench", "table", "--csv"]) == 0
    assert len(list(csv.DictReader(io.StringIO(capsys.readouterr().out)))) == 3
    assert run(["bench", "table", "--json", "--recipe", "other"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["recipe"], row["date"], row["latency_ms_median"]) == ("other", str(NIGHT), 2.0)
    assert run(["bench", "table", "--markdown", "--columns", "recipe,reason"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| minilm | a\\|b c |" in lines
    assert run(["bench", "table", "--columns", "latency"]) == 2
    assert "no column 'latency'" in capsys.readouterr().err


def test_bench_history_marks_the_slower_night(
    store_environment: EngineStore,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [make_row(i) for i in range(8)] + [make_row(9, latency_ms_median=3.0)]
    BenchmarkTables(store_environment.objects).append(rows)
    assert run(["bench", "history", "minilm", "--nights", "3650", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["verdict"] for row in found] == ["no-baseline"] * 5 + ["ok"] * 3 + ["slower"]


def test_report_is_written_published_and_opens_by_its_link(
    store_environment: EngineStore,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    store = store_environment
    store.put_bytes(b"engine")
    store.put_bytes(b"graph")
    assert store.publish(make_manifest("unmeasured"))
    path = tmp_path / "new" / "report.html"
    assert run(["report", "-o", str(path), "--publish"]) == 0
    said = capsys.readouterr().out
    html = path.read_bytes()
    assert b"unmeasured" in html
    link = said.strip().splitlines()[-1]
    with urllib.request.urlopen(link) as answer:
        assert answer.read() == html
        assert answer.headers["Content-Type"].startswith("text/html")
    assert store.objects.get("reports/latest.html") is not None


def test_upgrade_lists_what_dies_and_refuses_a_toolchain_nobody_used(
    store_environment: EngineStore,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = store_environment
    store.put_bytes(b"engine")
    store.put_bytes(b"graph")
    store.publish(make_manifest())
    assert run(["upgrade", "tensorrt", "10.17.0.2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [engine["fate"] for engine in found["engines"]] == ["to-rebuild"]
    assert run(["upgrade", "trtexec", "11.0"]) == 2
    assert "use one of: tensorrt" in capsys.readouterr().err


def test_a_runs_outcomes_become_rows_of_the_night(store: EngineStore) -> None:
    store.put_bytes(b"engine")
    store.put_bytes(b"graph")
    manifest = make_manifest()
    store.publish(manifest)
    cell = {"recipe": "model", "precision": "fp16"}
    outcomes = [
        of_manifest("model", manifest, "built"),
        of_manifest("model", manifest, "cached"),
        Outcome(gpu="l4", status="rejected", reason="accuracy: cosine 0.9 < 0.99", **cell),
        Outcome(gpu="a100", status="skipped", reason="no tensor cores", **cell),
    ]
    outcome_rows.record(store, outcomes, night=NIGHT)
    found = {row.gpu: row for row in BenchmarkTables(store.objects).rows()}
    assert {gpu: row.outcome for gpu, row in found.items()} == {
        "t4": "built",
        "l4": "failed",
        "a100": "skipped",
    }
    assert found["l4"].reason == "accuracy: cosine 0.9 < 0.99"
    assert {row.date for row in found.values()} == {NIGHT}


def test_a_night_is_compacted_and_its_page_published(
    store: EngineStore,
) -> None:
    tables = BenchmarkTables(store.objects)
    tables.append([make_row(night, recipe=recipe) for night in (0, 1) for recipe in ("a", "b")])
    night = make_row(1).date
    tables.compact(make_row(0).date)
    link = nightly.link(store, nightly.publish(store, nightly.page(store, today=night), night))
    assert len(keys(tables)) == 1 + 2
    assert len(tables.rows()) == 4
    with urllib.request.urlopen(link) as answer:
        assert b"Night of <b>2026-11-21</b>" in answer.read()
