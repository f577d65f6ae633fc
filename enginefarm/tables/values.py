"""Validates the values of a Parquet file against the columns of BenchmarkRow.

Rows are read without validation, a hundred thousand in a second. So each column is judged as a
whole: a text column by its different values, a column of numbers by its ends.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Annotated, Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from enginefarm.tables.rows import BenchmarkRow


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
