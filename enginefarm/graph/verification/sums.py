"""Sums over the elements of an output, from which all of its figures are made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from enginefarm.documents.comparing import UNUSABLE

if TYPE_CHECKING:
    from enginefarm.graph.model.arrays import Array


class Values(NamedTuple):
    """One output of one batch, all in float64 and of one shape.

    counts: 1 for each element that counts, 0 for the others; None: all of them. moved: by how
    much FP32 rounding moves it; None where that is not measured.
    """

    wanted: Array
    found: Array
    counts: Array | None
    moved: Array | None


class Sums:
    """Sums over elements: numbers, or one for each index of an axis."""

    def __init__(self) -> None:
        self.values: Array | None = None
        self.largest: Any = 0.0

    @staticmethod
    def of(values: Values) -> Sums:
        """Over all elements."""
        row = Values._make(None if part is None else part.reshape(1, -1) for part in values)
        return Sums.along(row, 0).one(0)

    @staticmethod
    def along(values: Values, axis: int) -> Sums:
        """One for each index of that axis: x·x, y·y, x·y, |x-y|², number, rounding², and the
        largest |x-y|."""
        import numpy as np

        size = values.wanted.shape[axis]

        def rows(part: Array) -> Array:
            return np.moveaxis(part, axis, 0).reshape(size, -1)

        a, b = rows(values.wanted), rows(values.found)
        d = a - b
        number = np.full(size, float(a.shape[1]))
        if values.counts is not None:
            number = rows(values.counts).sum(1)
        moved = None if values.moved is None else rows(values.moved)
        rounding = np.zeros(size) if moved is None else np.einsum("ij,ij->i", moved, moved)
        made = Sums()
        pairs = ((a, a), (b, b), (a, b), (d, d))
        sums = (np.einsum("ij,ij->i", p, q) for p, q in pairs)
        made.values = np.stack([*sums, number, rounding])
        made.largest = np.abs(d).max(1, initial=0)
        return made

    def add(self, other: Sums) -> None:
        """Sums of two batches; where an axis is of another size, its indices are matched."""
        import numpy as np

        if self.values is None or other.values is None:
            self.values = other.values if self.values is None else self.values
            self.largest = np.maximum(self.largest, other.largest)
            return
        mine, theirs = self.values, other.values
        if mine.ndim == 2 and mine.shape != theirs.shape:
            size = max(mine.shape[1], theirs.shape[1])
            mine, theirs = (np.pad(v, ((0, 0), (0, size - v.shape[1]))) for v in (mine, theirs))
            self.largest = np.pad(self.largest, (0, size - len(self.largest)))
            other_largest = np.pad(other.largest, (0, size - len(other.largest)))
        else:
            other_largest = other.largest
        self.values = mine + theirs
        self.largest = np.maximum(self.largest, other_largest)

    def one(self, index: int) -> Sums:
        made = Sums()
        if self.values is not None:
            made.values, made.largest = self.values[:, index], float(self.largest[index])
        return made

    def each(self) -> list[Sums]:
        return [] if self.values is None else [self.one(i) for i in range(self.values.shape[1])]

    def between(self, start: int, end: int) -> Sums:
        """The sums of some indices, taken together."""
        made = Sums()
        if self.values is not None:
            made.values = self.values[:, start:end].sum(1)
            made.largest = float(self.largest[start:end].max(initial=0))
        return made

    def size(self) -> float:
        """Root mean square of the reference."""
        if self.values is None or not self.values[4]:
            return 0.0
        return float((self.values[0] / self.values[4]) ** 0.5)

    def figures(self, floor: float) -> tuple[float, float, float, float]:
        """Cosine, relative L2, largest difference, and what FP32 rounding costs, as relative L2.

        floor: the reference counts as this large at least, so that where it is near 0 the error
        is measured by itself."""
        if self.values is None:
            return 1.0, 0.0, float(self.largest), 0.0
        xx, yy, xy, dd, count, rr = (float(value) for value in self.values)
        least = floor**2 * count
        length = max(xx, least)
        rounding = min(UNUSABLE / 10, (rr / length) ** 0.5) if length else 0.0
        if not dd:
            return 1.0, 0.0, float(self.largest), rounding
        cosine = (xy + least) / ((xx + least) * (yy + least)) ** 0.5
        relative = min(UNUSABLE / 10, (dd / length) ** 0.5)
        return max(-1.0, min(1.0, cosine)), relative, float(self.largest), rounding
