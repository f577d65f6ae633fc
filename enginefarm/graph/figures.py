"""Figures of outputs against the FP32 reference: of the whole, and of its worst parts.

A mean hides what matters. A detector returns boxes in hundreds of pixels and scores below 1 in
one output: its cosine is 0.9997 with every score ruined. So each sample, each channel, each
corner of the profiles and each slice that the recipe names has figures of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from enginefarm.documents.comparing import UNUSABLE, Comparing, OutputComparison, Part
from enginefarm.errors import CalibrationError

if TYPE_CHECKING:
    import numpy as np

    from enginefarm.graph.reference import ReferenceBatch

    Array = np.ndarray[Any, Any]

SAMPLE_FLOOR = 0.1
"""A sample or corner is measured against a tenth of the whole output's size at least: an empty
picture among others would turn rounding into an error without bound."""
CHANNEL_FLOOR = 1e-5
"""Channels of one output may be of different units (pixels, probabilities)."""


@dataclass
class Output:
    """Running sums of one output, over the batches of the data and over each corner."""

    name: str
    how: Comparing
    whole: _Sums = field(default_factory=lambda: _Sums())
    samples: list[tuple[str, _Sums]] = field(default_factory=list[tuple[str, "_Sums"]])
    corners: list[tuple[str, _Sums]] = field(default_factory=list[tuple[str, "_Sums"]])
    channels: dict[int, _Sums] = field(default_factory=dict[int, "_Sums"])
    fault: str = ""
    rows: int = 0
    agree: int = 0
    right: int = 0
    reference_right: int = 0
    labeled: int = 0

    def add(self, batch: ReferenceBatch, found: Array, first_sample: int) -> bool:
        """Takes in one batch. False when its values cannot be compared, and `fault` says why."""
        import numpy as np

        wanted = batch.outputs[self.name]
        if wanted.shape != found.shape:
            return self._unusable(f"its shape is {found.shape}, and the reference's {wanted.shape}")
        kept = _kept(batch, self.how, wanted.shape)
        x, y = wanted.astype(np.float64), found.astype(np.float64)
        # An infinity that FP32 has too is not damage, and neither is padding.
        equal = np.isinf(x) & (x == y)
        ignored = equal if kept is None else equal | ~kept
        if ignored.any():
            x, y = np.where(ignored, 0, x), np.where(ignored, 0, y)
        bad = ~np.isfinite(y) | ~np.isfinite(x)
        if bad.any():
            place = tuple(int(index[0]) for index in np.nonzero(bad)) if bad.ndim else ()
            return self._unusable(
                f"{int(bad.sum())} of {bad.size} values are {_kind(y[place])} where FP32 has "
                f"{float(wanted[place]):.6g}, first at {list(place)}"
                + (f" ({batch.corner})" if batch.corner else "")
            )
        counts = (~ignored).astype(np.float64) if ignored.any() else None
        if batch.corner:
            self.corners.append((batch.corner, _Sums.of(x, y, counts)))
            return True
        self.whole.add(_Sums.of(x, y, counts))
        self._parts(x, y, counts, batch, first_sample)
        if self.name in self.how.class_scores and x.ndim:
            self._classes(wanted, found, kept, batch.labels)
        return True

    def _unusable(self, why: str) -> bool:
        self.fault = self.fault or why
        return False

    def _parts(
        self, x: Array, y: Array, counts: Array | None, batch: ReferenceBatch, first_sample: int
    ) -> None:
        if x.ndim < 2 or not x.size:
            return
        if x.shape[0] == batch.samples and x.shape[0] > 1:
            for index, sums in enumerate(_Sums.along(x, y, counts, 0).each()):
                self.samples.append((f"sample {first_sample + index}", sums))
        scores = self.name in self.how.class_scores  # judged by top-1
        if x.ndim == 2 and self.name not in self.how.slices:
            return
        axes = {1} if x.ndim != 3 or self.name in self.how.slices else {1, 2}
        for axis in axes if not scores or self.name in self.how.slices else ():
            sums = _Sums.along(x, y, counts, axis)
            self.channels.setdefault(axis, _Sums()).add(sums)

    def _classes(
        self, wanted: Array, found: Array, kept: Array | None, labels: Array | None
    ) -> None:
        import numpy as np

        axis = self.how.axis_of_classes(wanted.ndim)
        ours, theirs = found.argmax(axis), wanted.argmax(axis)
        use = np.ones(ours.shape, bool) if kept is None else kept.any(axis)
        self.rows += int(use.sum())
        self.agree += int((ours == theirs)[use].sum())
        if labels is None:
            return
        fit_labels(self.name, wanted.shape, labels, self.how)
        self.labeled += int(use.sum())
        self.right += int((ours == labels)[use].sum())
        self.reference_right += int((theirs == labels)[use].sum())

    def result(self) -> OutputComparison:
        """The figures; cosine 0 and relative L2 UNUSABLE where they cannot be compared."""
        if self.fault:
            return OutputComparison(
                output=self.name,
                cosine=0.0,
                max_abs=UNUSABLE,
                relative_l2=UNUSABLE,
                fault=self.fault,
            )
        cosine, relative, largest = self.whole.figures(self.how.near_zero)
        return OutputComparison(
            output=self.name,
            cosine=cosine,
            max_abs=largest,
            relative_l2=relative,
            top1_agreement=self.agree / self.rows if self.rows else None,
            top1_accuracy=self.right / self.labeled if self.labeled else None,
            reference_top1_accuracy=self.reference_right / self.labeled if self.labeled else None,
            parts=tuple(self._worst()),
        )

    def _worst(self) -> list[Part]:
        size = self.whole.size()
        near, far = SAMPLE_FLOOR * size, CHANNEL_FLOOR * size
        found = [*self._of("sample", self.samples, near), *self._of("corner", self.corners, near)]
        named = self.how.slices.get(self.name, {})
        if named:
            sums = self.channels.get(1, _Sums())
            parts = [(f"slice {name}", sums.between(*ends)) for name, ends in named.items()]
            return found + self._of("slice", parts, far)
        for axis, sums in sorted(self.channels.items()):
            parts = [(f"axis {axis}, index {i}", one) for i, one in enumerate(sums.each())]
            found += self._of("channel", parts, far)
        return found

    def _of(
        self,
        kind: Literal["sample", "channel", "slice", "corner"],
        parts: list[tuple[str, _Sums]],
        floor: float,
    ) -> list[Part]:
        """The worst by cosine and the worst by relative L2; often the same one."""
        floor = max(floor, self.how.near_zero)
        made = [
            Part(kind=kind, where=where, cosine=cosine, relative_l2=relative, max_abs=largest)
            for where, sums in parts
            for cosine, relative, largest in [sums.figures(floor)]
        ]
        if not made:
            return []
        worst = [min(made, key=lambda one: one.cosine), max(made, key=lambda one: one.relative_l2)]
        return list(dict.fromkeys(worst))


def fit_labels(name: str, shape: tuple[int, ...], labels: Array, how: Comparing) -> None:
    """Raises: CalibrationError where labels are not one class for each place of the output."""
    axis = how.axis_of_classes(len(shape))
    places = (*shape[:axis], *shape[axis + 1 :])
    if labels.shape != places:
        raise CalibrationError(
            f"data.labels: labels of shape {labels.shape} do not fit output {name!r}",
            why=f"its shape is {shape}, with the classes along axis {axis}",
            fix=f"give labels of shape {places}, or write `verification.class_axis`",
        )


class _Sums:
    """Sums over elements: numbers, or one for each index of an axis."""

    def __init__(self) -> None:
        self.values: Array | None = None
        self.largest: Any = 0.0

    @staticmethod
    def of(x: Array, y: Array, counts: Array | None) -> _Sums:
        """Over all elements."""
        flat = None if counts is None else counts.reshape(1, -1)
        return _Sums.along(x.reshape(1, -1), y.reshape(1, -1), flat, 0).one(0)

    @staticmethod
    def along(x: Array, y: Array, counts: Array | None, axis: int) -> _Sums:
        """One for each index of that axis: x·x, y·y, x·y, |x-y|², number, and max |x-y|.

        counts: 1 for each element that counts, 0 for the others; None: all of them.
        """
        import numpy as np

        def rows(part: Array) -> Array:
            return np.moveaxis(part, axis, 0).reshape(x.shape[axis], -1)

        a, b = rows(x), rows(y)
        d = a - b
        number = np.full(len(a), float(a.shape[1])) if counts is None else rows(counts).sum(1)
        made = _Sums()
        pairs = ((a, a), (b, b), (a, b), (d, d))
        made.values = np.stack([*(np.einsum("ij,ij->i", p, q) for p, q in pairs), number])
        made.largest = np.abs(d).max(1, initial=0)
        return made

    def add(self, other: _Sums) -> None:
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

    def one(self, index: int) -> _Sums:
        made = _Sums()
        if self.values is not None:
            made.values, made.largest = self.values[:, index], float(self.largest[index])
        return made

    def each(self) -> list[_Sums]:
        return [] if self.values is None else [self.one(i) for i in range(self.values.shape[1])]

    def between(self, start: int, end: int) -> _Sums:
        """The sums of some indices, taken together."""
        made = _Sums()
        if self.values is not None:
            made.values = self.values[:, start:end].sum(1)
            made.largest = float(self.largest[start:end].max(initial=0))
        return made

    def size(self) -> float:
        """Root mean square of the reference."""
        if self.values is None or not self.values[4]:
            return 0.0
        return float((self.values[0] / self.values[4]) ** 0.5)

    def figures(self, floor: float) -> tuple[float, float, float]:
        """Cosine, relative L2 and largest difference. floor: the reference counts as this large
        at least, so that where it is near 0 the error is measured by itself."""
        if self.values is None or not float(self.values[3]):
            return 1.0, 0.0, float(self.largest)
        xx, yy, xy, dd, count = (float(value) for value in self.values)
        least = floor**2 * count
        cosine = (xy + least) / ((xx + least) * (yy + least)) ** 0.5
        relative = min(UNUSABLE / 10, (dd / max(xx, least)) ** 0.5)
        return max(-1.0, min(1.0, cosine)), relative, float(self.largest)


def _kept(batch: ReferenceBatch, how: Comparing, shape: tuple[int, ...]) -> Array | None:
    """Where the mask says that an output of that shape is not padding; None where it has no
    say. The mask's axes are the output's first ones, or its first and its last."""
    import numpy as np

    if how.mask is None or how.mask not in batch.inputs:
        return None
    mask = batch.inputs[how.mask] != 0
    extra = len(shape) - mask.ndim
    if extra < 0:
        return None
    if shape[: mask.ndim] == mask.shape:
        mask = mask.reshape(*mask.shape, *(1,) * extra)
    elif mask.ndim > 1 and (shape[0], *shape[len(shape) - mask.ndim + 1 :]) == mask.shape:
        mask = mask.reshape(mask.shape[0], *(1,) * extra, *mask.shape[1:])
    else:
        return None
    return np.broadcast_to(mask, shape)


def _kind(value: Any) -> str:
    import numpy as np

    return "NaN" if np.isnan(value) else "infinite" if np.isinf(value) else "finite"
