"""RowFilter: which benchmark rows a reader wants."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Any, cast

from pydantic import Field

from enginefarm.errors import UsageError
from enginefarm.schema import Frozen
from enginefarm.tables.rows import BenchmarkRow

Value = str | int | float | bool


class RowFilter(Frozen):
    """Rows whose columns equal one of the values named, on nights since..until, inclusive."""

    equal: dict[str, tuple[Value, ...]] = Field(default_factory=dict)
    since: dt.date | None = None
    until: dt.date | None = None

    @classmethod
    def of(
        cls, *, since: dt.date | str | None = None, until: dt.date | str | None = None, **equal: Any
    ) -> RowFilter:
        """From keyword arguments: a column takes one value or several; None filters nothing.

        Raises: UsageError for an unknown column, or text that is not a date.
        """
        known_columns(equal)
        return cls(
            equal={name: _values(value) for name, value in equal.items() if value is not None},
            since=_date("since", since),
            until=_date("until", until),
        )

    def wants(self, night: dt.date, recipe: str | None) -> bool:
        """Whether a file of that partition can hold a wanted row (recipe None: of any)."""
        recipes = self.equal.get("recipe")
        return (
            (self.since is None or night >= self.since)
            and (self.until is None or night <= self.until)
            and (recipes is None or recipe is None or recipe in recipes)
        )


def known_columns(names: Iterable[str]) -> None:
    """Raises: UsageError for a name that is not a column."""
    for name in names:
        if name not in BenchmarkRow.model_fields:
            raise UsageError(
                f"benchmarks: there is no column {name!r}",
                fix=f"use since, until, or one of: {', '.join(BenchmarkRow.model_fields)}",
            )


def _values(value: Any) -> tuple[Value, ...]:
    if isinstance(value, (list, tuple, set, frozenset)):
        return tuple(cast("Iterable[Value]", value))
    return (value,)


def _date(field: str, value: dt.date | str | None) -> dt.date | None:
    if value is None or isinstance(value, dt.date):
        return value
    try:
        return dt.date.fromisoformat(value)
    except ValueError:
        raise UsageError(
            f"benchmarks: {field} is {value!r}, which is not a date", fix="write it as 2026-11-23"
        ) from None
