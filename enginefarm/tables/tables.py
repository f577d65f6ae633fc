"""The benchmark tables: Parquet on the store, appended by many, read with filters.

benchmarks/date=<night>/recipe=<recipe>/<writer>-<sha256>.parquet
benchmarks/date=<night>/recipe=_all/night-<sha256>.parquet          after `compact`
benchmarks/rules/<recipe>.json                                      regression_rules
benchmarks/speeds/<recipe>/<gpu>.json                               the newest figures, for pull

Files are immutable and named after their content, so an append needs no lock, a retried
append changes nothing, and no byte is trusted before its digest is checked. One night is one
listing. Rows carry an id: a reader that races with `compact` counts each row once.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from enginefarm.errors import CorruptBlob, StoreMissing
from enginefarm.tables import parquet as rows_parquet
from enginefarm.tables import speeds
from enginefarm.tables.filter import RowFilter, known_columns
from enginefarm.tables.parquet import ROW_ID, Table
from enginefarm.tables.rows import BenchmarkRow

if TYPE_CHECKING:
    from enginefarm.store.s3 import ObjectStore

PREFIX = "benchmarks/"
EVERY_RECIPE = "_all"
"""Partition of compacted nights. Not a Name, so that no recipe can be called so."""

LOG = logging.getLogger(__name__)
READERS = 16
ATTEMPTS = 5
_KEY = re.compile(
    r"^benchmarks/date=(?P<date>\d{4}-\d\d-\d\d)/recipe=(?P<recipe>[^/]+)/"
    r"[a-z0-9._-]+-(?P<sha256>[0-9a-f]{64})\.parquet$"
)


class BenchmarkTables:
    """The tables of one store. Raises what ObjectStore raises, and CorruptBlob.

    tolerant: leaves out a file that is damaged or of a newer version, with a note. Whoever only
    shows rows is; a gate, which judges by them, is not.
    """

    def __init__(self, objects: ObjectStore, *, tolerant: bool = False) -> None:
        self.objects = objects
        self._tolerant = tolerant

    def append(self, rows: Iterable[BenchmarkRow]) -> tuple[str, ...]:
        """Writes rows, a file for each night, recipe and writer. Returns the keys.

        Appending the same rows again writes nothing new.
        """
        groups: defaultdict[tuple[dt.date, str, str], list[BenchmarkRow]] = defaultdict(list)
        for row in rows:
            groups[row.date, row.recipe, row.writer].append(row)
        keys = tuple(
            self._put(night, recipe, writer, rows_parquet.encode(group))
            for (night, recipe, writer), group in groups.items()
        )
        speeds.remember(self.objects, (row for group in groups.values() for row in group))
        return keys

    def read(self, where: RowFilter | None = None, columns: Sequence[str] | None = None) -> Table:
        """Rows as an Arrow table, oldest first, each once.

        columns: only these, in this order; None: all. Raises: UsageError, CorruptBlob.
        """
        where = where or RowFilter()
        wanted = tuple(BenchmarkRow.model_fields if columns is None else columns)
        known_columns(wanted)
        needed = {ROW_ID, "date", "measured_at", *wanted, *where.equal}
        return rows_parquet.finish(self._fetch_all(where, needed), where, wanted)

    def rows(
        self, where: RowFilter | None = None, columns: Sequence[str] | None = None
    ) -> list[BenchmarkRow]:
        """Rows as values; columns left out, and None in old files, have their defaults."""
        found = self.read(where, columns).to_pylist()
        return [BenchmarkRow.model_construct(**row) for row in found]

    def nights(self) -> tuple[dt.date, ...]:
        """Every night that has rows, oldest first."""
        folders = self.objects.folders(PREFIX)
        dates = (_date(name.removeprefix("date=")) for name in folders if name.startswith("date="))
        return tuple(sorted(date for date in dates if date is not None))

    def compact(self, night: dt.date) -> int:
        """Merges a night's files into one; returns how many it replaced.

        The merged file is complete before anything is deleted. Safe while others append,
        read or compact. A file that is left out stays as it is, and so does one with columns of a
        newer version, which would be lost.
        """
        where = RowFilter(since=night, until=night)
        keys = self._keys(where)
        if len(keys) < 2:
            return 0
        with ThreadPoolExecutor(READERS) as pool:
            fetch = self._reader(None, where, left_out=None, whole=True)
            read = {key: t for key, t in pool.map(fetch, keys) if t is not None}
        if len(read) < 2:
            return 0
        merged = rows_parquet.finish(
            list(read.values()), where, (ROW_ID, *BenchmarkRow.model_fields)
        )
        kept = self._put(night, EVERY_RECIPE, "night", rows_parquet.write(merged.sort_by("recipe")))
        gone = [key for key in read if key != kept]
        for key in gone:
            self.objects.delete(key)
        return len(gone)

    def _put(self, night: dt.date, recipe: str, writer: str, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        key = f"{PREFIX}date={night}/recipe={recipe}/{writer}-{digest}.parquet"
        self.objects.put_if_absent(key, data)
        return key

    def _keys(self, where: RowFilter) -> list[str]:
        """Keys of the files that can hold a wanted row: one listing, pruned by name."""
        found: list[str] = []
        for info in self.objects.list(_prefix(where)):
            match = _KEY.match(info.key)
            date = None if match is None else _date(match["date"])
            if match is None or date is None:
                continue
            recipe = None if match["recipe"] == EVERY_RECIPE else match["recipe"]
            if where.wants(date, recipe):
                found.append(info.key)
        return found

    def _fetch_all(self, where: RowFilter, columns: set[str]) -> list[Table]:
        held: dict[str, Table] = {}
        # A file that is gone was compacted between the listing and the read: list again.
        for _ in range(ATTEMPTS):
            keys = self._keys(where)
            held = {key: held[key] for key in keys if key in held}
            missing = [key for key in keys if key not in held]
            nothing = rows_parquet.schema(columns).empty_table()
            with ThreadPoolExecutor(READERS) as pool:
                found = pool.map(self._reader(columns, where, left_out=nothing), missing)
                held |= {key: table for key, table in found if table is not None}
            if len(held) == len(keys):
                return list(held.values())
        raise StoreMissing(
            "benchmarks: files keep vanishing while they are read",
            why="something other than `bench compact` deletes them",
        )

    def _reader(
        self,
        columns: set[str] | None,
        where: RowFilter,
        *,
        left_out: Table | None,
        whole: bool = False,
    ) -> Callable[[str], tuple[str, Table | None]]:
        """left_out: what stands for a file that this version cannot read; None: gone.

        whole: a file with columns that this version does not know is left out too.
        """

        def fetch(key: str) -> tuple[str, Table | None]:
            answer = self.objects.get(key)
            if answer is None:
                return key, None
            try:
                table = _checked(key, answer[0], columns, where)
                newer = rows_parquet.unknown_columns(answer[0]) if whole else ()
                if not newer:
                    return key, table
                LOG.warning("note: %s has columns of a newer version: %s", key, ", ".join(newer))
                return key, left_out
            except CorruptBlob as error:
                if not self._tolerant:
                    raise
                LOG.warning("note: left out: %s", error.what)
                return key, left_out

        return fetch


def _checked(key: str, data: bytes, columns: set[str] | None, where: RowFilter) -> Table:
    match = _KEY.match(key)
    if match is None or hashlib.sha256(data).hexdigest() != match["sha256"]:
        raise CorruptBlob(
            f"benchmarks: {key} does not match the digest in its name",
            fix="delete the object; its rows are lost",
        )
    return rows_parquet.decode(data, columns, where, key)


def _date(text: str) -> dt.date | None:
    """None for what only looks like a date, in a name that somebody else chose."""
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        return None


def _prefix(where: RowFilter) -> str:
    """The longest listing prefix that covers every night since..until."""
    if where.since is None or where.until is None:
        return PREFIX
    first, last = f"date={where.since}/", f"date={where.until}/"
    same = 0
    while same < len(first) and first[same] == last[same]:
        same += 1
    return PREFIX + first[:same]


def benchmarks(
    store: str | None = None, *, columns: Sequence[str] | None = None, **filters: Any
) -> Any:
    """Benchmark rows as a pandas.DataFrame, oldest first.

    filters: `since`, `until` (nights, inclusive) and any column: one value or several.
    store: `s3://bucket/prefix`; None: the default store.

        enginefarm.benchmarks(recipe="minilm", gpu=["t4", "l4"], since="2026-11-01")

    Raises: UsageError for an unknown column, and what the store raises.
    """
    from enginefarm.store import open_store

    tables = BenchmarkTables(open_store(store).objects)
    return tables.read(RowFilter.of(**filters), columns).to_pandas()
