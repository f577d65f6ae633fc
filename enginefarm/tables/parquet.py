"""Benchmark rows as Parquet bytes, and back. pyarrow is loaded when a function is called."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Annotated, Any, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError

from enginefarm.errors import CorruptBlob, UsageError
from enginefarm.tables.filter import RowFilter
from enginefarm.tables.rows import ROW_SCHEMA_VERSION, BenchmarkRow

Table = Any
"""A pyarrow.Table; pyarrow ships no types."""

ROW_ID = "row_id"
ROW_GROUP_ROWS = 4096
MOST_ROWS = 10_000_000
"""The most rows of one file, which holds at most one night."""


def schema(columns: Collection[str] | None = None) -> Any:
    """The pyarrow.Schema of the files: the row id, and BenchmarkRow's fields."""
    pa = _arrow()
    kinds: dict[type, Any] = {
        str: pa.string(),
        int: pa.int64(),
        float: pa.float64(),
        bool: pa.bool_(),
        dt.date: pa.date32(),
        dt.datetime: pa.timestamp("us", "UTC"),
    }
    fields = [pa.field(ROW_ID, pa.string(), nullable=False)]
    for name, field in BenchmarkRow.model_fields.items():
        kind, optional = _kind(field.annotation)
        fields.append(pa.field(name, kinds[kind], nullable=optional))
    chosen = [field for field in fields if columns is None or field.name in columns]
    return pa.schema(chosen, {"enginefarm_rows": str(ROW_SCHEMA_VERSION)})


def _kind(annotation: Any) -> tuple[type, bool]:
    """The scalar type behind an annotation, and whether it may be None."""
    parts = get_args(annotation)
    arguments = [part for part in parts if part is not type(None)]
    optional = type(None) in parts
    if not arguments:
        return annotation, optional
    if isinstance(arguments[0], str):  # a Literal's members
        return str, optional
    return _kind(arguments[0])[0], optional


def encode(rows: Sequence[BenchmarkRow]) -> bytes:
    """Rows as the bytes of one Parquet file; equal rows give equal bytes."""
    unique = {row.row_id: row for row in rows}
    dumped = [{ROW_ID: key, **dict(unique[key])} for key in sorted(unique)]
    return write(_arrow().Table.from_pylist(dumped, schema=schema()))


def write(table: Table) -> bytes:
    """One Parquet file. Columns without a value are left out: most rows fill half of them."""
    filled = [name for name in table.column_names if table[name].null_count < len(table)]
    table = table.select(filled)
    sink = _arrow().BufferOutputStream()
    import_module("pyarrow.parquet").write_table(
        table, sink, compression="zstd", row_group_size=ROW_GROUP_ROWS
    )
    return sink.getvalue().to_pybytes()


def decode(
    data: bytes, columns: Collection[str] | None, where: RowFilter, name: str = "a file"
) -> Table:
    """One file's wanted columns, of the row groups whose statistics admit a wanted row.

    Columns that the file lacks are missing here too, and null after `finish`.
    Raises: CorruptBlob.
    """
    pa = _arrow()
    wanted = schema(columns)
    try:
        file = import_module("pyarrow.parquet").ParquetFile(pa.BufferReader(data))
        there = [name for name in wanted.names if name in file.schema_arrow.names]
        groups = [
            index
            for index in range(file.metadata.num_row_groups)
            if _admits(file.metadata.row_group(index), where)
        ]
        if file.metadata.num_rows > MOST_ROWS:
            raise ValueError(f"it has {file.metadata.num_rows:,} rows")
        found = file.read_row_groups(groups, columns=there, use_threads=False)
        found = found.cast(pa.schema([wanted.field(column) for column in found.column_names]))
        found.validate(full=True)
        wrong = find_invalid(found)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptBlob(
            f"benchmarks: {name} is not the Parquet that this version of enginefarm writes",
            why=str(error).partition("\n")[0],
            fix="update enginefarm, if a newer one wrote it",
        ) from error
    if wrong is not None:
        raise CorruptBlob(
            f"benchmarks: {name} has rows that this version of enginefarm does not know",
            why=wrong,
            fix="update enginefarm, if a newer one wrote them; else delete the object",
        )
    return found


def unknown_columns(data: bytes) -> tuple[str, ...]:
    """The columns of a file that `decode` has read which this version does not know."""
    file = import_module("pyarrow.parquet").ParquetFile(_arrow().BufferReader(data))
    known = schema().names
    return tuple(name for name in file.schema_arrow.names if name not in known)


def _admits(group: Any, where: RowFilter) -> bool:
    """Whether a row group's minima and maxima leave room for a wanted row."""
    if not where.equal:
        return True
    for index in range(group.num_columns):
        column = group.column(index)
        values = where.equal.get(column.path_in_schema)
        statistics = column.statistics if values else None
        if not values or statistics is None or not statistics.has_min_max:
            continue
        try:
            if not any(statistics.min <= value <= statistics.max for value in values):
                return False
        except TypeError:  # a value of another type: `finish` says so
            continue
    return True


def finish(tables: Sequence[Table], where: RowFilter, columns: Sequence[str]) -> Table:
    """One table of the wanted rows, oldest first, each row id once.

    Raises: UsageError for a filter value of the wrong type.
    """
    pa = _arrow()
    needed = {ROW_ID, "date", "measured_at", *columns, *where.equal}
    whole = schema(needed).empty_table()  # columns that no file has, or only newer ones
    table = pa.concat_tables([whole, *tables], promote_options="default")
    table = table.filter(_expression(where))
    table = table.sort_by([("measured_at", "ascending"), (ROW_ID, "ascending")])
    # A row id that comes twice (a night being compacted) is one row: keep its first place.
    places = pa.table({"id": table[ROW_ID], "place": pa.array(range(len(table)), pa.int64())})
    firsts = places.group_by("id").aggregate([("place", "min")])["place_min"]
    if len(firsts) < len(table):
        table = table.take(firsts.combine_chunks().sort())
    return table.select(columns)


def _expression(where: RowFilter) -> Any:
    pa, pc = _arrow(), import_module("pyarrow.compute")
    expression = pc.scalar(True)
    kinds = schema()
    for name, values in where.equal.items():
        try:
            chosen = pa.array(values, type=kinds.field(name).type)
        except pa.ArrowException as error:
            raise UsageError(
                f"benchmarks: {name} cannot be {', '.join(map(repr, values))}", why=str(error)
            ) from error
        expression = expression & pc.field(name).isin(chosen)
    if where.since is not None:
        expression = expression & (pc.field("date") >= pc.scalar(where.since))
    if where.until is not None:
        expression = expression & (pc.field("date") <= pc.scalar(where.until))
    return expression


def _arrow() -> ModuleType:
    return import_module("pyarrow")


def find_invalid(table: Any) -> str | None:
    """`column: what is wrong` for the first column with an invalid value; None if there is none.

    table: a pyarrow.Table with columns of the types that `parquet.schema` has.
    """
    for name in table.column_names if len(table) else ():
        if name not in BenchmarkRow.model_fields:
            continue
        try:
            for value in _probes(table[name]):
                _field(name).validate_python(value)
        except ValidationError as error:
            return f"{name}: {error.errors()[0]['msg']}"
    return None


def _probes(column: Any) -> list[Any]:
    """Values that are all valid exactly if the whole column is: constraints are intervals."""
    pa, pc = import_module("pyarrow"), import_module("pyarrow.compute")
    if pa.types.is_string(column.type) or pa.types.is_boolean(column.type):
        return pc.unique(column).to_pylist()
    ends = [one.as_py() for one in pc.min_max(column).values()]
    if pa.types.is_floating(column.type) and not pc.all(pc.is_finite(column)).as_py():
        ends.append(float("nan") if column.null_count < len(column) else None)
    return ends


@cache
def _field(name: str) -> TypeAdapter[Any]:
    field = BenchmarkRow.model_fields[name]
    kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False))
