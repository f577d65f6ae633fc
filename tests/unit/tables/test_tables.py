"""The parts of the tables that need no server; the rest is in tests/integration/tables."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sample_rows import NIGHT, make_row

from enginefarm.errors import CorruptBlob, UsageError
from enginefarm.tables import parquet as rows_parquet
from enginefarm.tables.filter import RowFilter
from enginefarm.tables.rows import BenchmarkRow

ALL = tuple(BenchmarkRow.model_fields)


def read(data: bytes, where: RowFilter | None = None) -> list[BenchmarkRow]:
    where = where or RowFilter()
    table = rows_parquet.finish([rows_parquet.decode(data, None, where)], where, ALL)
    return [BenchmarkRow.model_validate(row) for row in table.to_pylist()]


def test_rows_come_back_as_they_went() -> None:
    rows = [make_row(i, batch=i + 1, cuda_graph=bool(i % 2), size_bytes=1 << 40) for i in range(9)]
    assert read(rows_parquet.encode(rows)) == rows


def test_equal_rows_give_equal_bytes_whatever_their_order() -> None:
    rows = [make_row(i) for i in range(4)]
    assert rows_parquet.encode(rows) == rows_parquet.encode([*reversed(rows), rows[0]])


def test_row_groups_that_cannot_hold_a_wanted_row_are_not_read() -> None:
    rows = [make_row(gpu=gpu, batch=i + 1) for i, gpu in enumerate(["l4"] * 4096 + ["t4"] * 10)]
    table = rows_parquet.finish(
        [rows_parquet.decode(rows_parquet.encode(rows), None, RowFilter())],
        RowFilter(),
        (rows_parquet.ROW_ID, *ALL),
    )
    data = rows_parquet.write(table.sort_by("gpu"))
    decoded = rows_parquet.decode(data, {"gpu"}, RowFilter.of(gpu="t4"))
    assert len(decoded) == 10
    assert len(read(data, RowFilter.of(gpu=["t4", "a100"]))) == 10


def test_a_file_of_an_older_writer_lacks_columns_and_they_are_none() -> None:
    table = pq.read_table(pa.BufferReader(rows_parquet.encode([make_row(batch=4)])))
    older = rows_parquet.write(table.drop_columns(["host_class"]))
    where = RowFilter()
    found = rows_parquet.finish([rows_parquet.decode(older, None, where)], where, ALL).to_pylist()
    assert found[0]["host_class"] is None
    assert found[0]["batch"] == 4


def test_a_column_of_a_newer_writer_of_another_type_is_one_clear_error() -> None:
    table = pq.read_table(pa.BufferReader(rows_parquet.encode([make_row(batch=4)])))
    place = table.column_names.index("batch")
    newer = table.set_column(place, "batch", pa.array(["four"]))
    with pytest.raises(CorruptBlob, match=r"KEY is not the Parquet") as refused:
        rows_parquet.decode(rows_parquet.write(newer), None, RowFilter(), "KEY")
    assert "update enginefarm" in refused.value.fix


def test_columns_of_a_newer_writer_are_ignored() -> None:
    table = pq.read_table(pa.BufferReader(rows_parquet.encode([make_row()])))
    newer = table.append_column("energy_j", pa.array([1.5]))
    assert read(rows_parquet.write(newer)) == [make_row()]


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" + bytes(200) + b"PAR1", b"text\n" * 50])
def test_bytes_that_are_no_parquet_are_one_clear_error(data: bytes) -> None:
    with pytest.raises(CorruptBlob, match="not the Parquet"):
        rows_parquet.decode(data, None, RowFilter())


def test_an_unknown_column_names_the_columns_there_are() -> None:
    with pytest.raises(UsageError, match="no column 'latency'") as caught:
        RowFilter.of(latency=3)
    assert "latency_ms_median" in caught.value.fix


def test_a_value_of_the_wrong_type_names_the_column() -> None:
    with pytest.raises(UsageError, match="batch cannot be 'eight'"):
        rows_parquet.finish([], RowFilter.of(batch="eight"), ALL)


def test_a_date_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="since is 'yesterday'"):
        RowFilter.of(since="yesterday")


def test_filters_and_dates_choose_rows() -> None:
    data = rows_parquet.encode([make_row(i, gpu=gpu) for i in range(5) for gpu in ("t4", "l4")])
    where = RowFilter.of(gpu="l4", since=NIGHT.replace(day=21), until="2026-11-23")
    assert [(row.date.day, row.gpu) for row in read(data, where)] == [
        (21, "l4"),
        (22, "l4"),
        (23, "l4"),
    ]
