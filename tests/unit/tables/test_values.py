"""Rows that no row of this version can be are found when a file is read, and named."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import pytest
from sample_rows import make_row

from enginefarm.errors import CorruptBlob
from enginefarm.tables import parquet
from enginefarm.tables.filter import RowFilter
from enginefarm.tables.parquet import find_invalid

pa: Any = import_module("pyarrow")  # it ships no types


def file_of(*changes: dict[str, Any], nullable: bool = False) -> bytes:
    """A Parquet file of a good row, and of one for each of the changes, which are not validated."""
    rows = [dict(make_row()), *({**dict(make_row()), **change} for change in changes)]
    dumped = [{parquet.ROW_ID: f"{number:032x}", **row} for number, row in enumerate(rows)]
    schema = pa.schema([field.with_nullable(nullable or field.nullable) for field in _fields()])
    return parquet.write(pa.Table.from_pylist(dumped, schema=schema))


def _fields() -> list[Any]:
    return list(parquet.schema())


@pytest.mark.parametrize(
    "change",
    [
        {"runtime": "later"},
        {"precision": "fp2"},
        {"outcome": "dreamt"},
        {"cov_verdict": "odd"},
        {"verified_on": "moon"},
        {"device_verification": "odd"},
        {"recipe": "../x"},
        {"recipe": "<b>"},
        {"gpu": ""},
        {"spec_digest": "x"},
        {"reason": "x" * 2001},
        {"batch": 0},
        {"size_bytes": -5},
        {"build_seconds": math.inf},
        {"latency_ms_median": math.nan},
        {"latency_ms_median": 0.0},
        {"latency_ms_p99": -1.0},
        {"throughput_samples_per_s": 0.0},
        {"cosine_min": math.nan},
        {"relative_l2_max": -math.inf},
    ],
    ids=str,
)
def test_a_value_that_this_version_does_not_know_is_named(change: dict[str, Any]) -> None:
    with pytest.raises(CorruptBlob) as refused:
        parquet.decode(file_of(change), None, RowFilter(), "the file")
    assert refused.value.why.startswith(f"{next(iter(change))}: ")
    assert "update enginefarm" in refused.value.fix


def test_bytes_that_are_not_text_are_refused() -> None:
    table = pa.Table.from_pylist([{parquet.ROW_ID: "0" * 32, **dict(make_row())}], parquet.schema())
    place = table.column_names.index("reason")
    text = pa.StringArray.from_buffers(
        1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")
    )
    table = table.set_column(place, "reason", text)
    with pytest.raises(CorruptBlob):
        parquet.decode(parquet.write(table), None, RowFilter())


def test_a_missing_time_is_refused() -> None:
    with pytest.raises(CorruptBlob):
        parquet.decode(file_of({"measured_at": None}, nullable=True), None, RowFilter())


def test_good_rows_and_no_rows_are_not_strange() -> None:
    table = parquet.decode(file_of({"gpu": None, "size_bytes": 0}), None, RowFilter())
    assert len(table) == 2
    assert find_invalid(table) is None
    assert find_invalid(parquet.schema().empty_table()) is None


def test_columns_that_are_not_asked_for_stop_nobody() -> None:
    body = file_of({"cosine_min": math.nan})
    assert len(parquet.decode(body, {"recipe", "batch"}, RowFilter())) == 2
