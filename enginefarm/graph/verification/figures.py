"""Compares outputs with the FP32 reference: each whole output, and its worst parts.

A mean can hide an error. A detector returns boxes in hundreds of pixels and scores below 1 in one
output, whose cosine is 0.9997 even if every score is wrong. So each sample, each channel, each
corner of the profiles and each slice that the recipe names has its own figures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from enginefarm.documents.comparing import UNUSABLE, ComparisonRules, OutputComparison, Part
from enginefarm.errors import CalibrationError
from enginefarm.graph.verification.sums import Sums, Values

if TYPE_CHECKING:
    from enginefarm.graph.model.arrays import Array
    from enginefarm.graph.verification.reference import ReferenceBatch


SAMPLE_FLOOR = 0.1
"""The error of a sample or corner is relative to at least a tenth of the whole output's size.
Otherwise rounding in an empty picture would count as an unbounded error."""
CHANNEL_FLOOR = 1e-5
"""Channels of one output may have different units (pixels, probabilities)."""

DISCRETE = frozenset(("int32", "int64", "bool"))
"""Types of classes, places and flags. Numbers of 8 bits are pictures or quantized, and near ones
mean nearly the same."""


@dataclass
class Output:
    """Running sums of one output, over the batches of the data and over each corner."""

    name: str
    how: ComparisonRules
    whole: Sums = field(default_factory=Sums)
    samples: list[tuple[str, Sums]] = field(default_factory=list[tuple[str, Sums]])
    corners: list[tuple[str, Sums]] = field(default_factory=list[tuple[str, Sums]])
    channels: dict[int, Sums] = field(default_factory=dict[int, Sums])
    fault: str = ""
    rows: int = 0
    agree: int = 0
    right: int = 0
    reference_right: int = 0
    labeled: int = 0
    discrete: int = 0
    equal: int = 0

    def add(
        self, batch: ReferenceBatch, found: Array, first_sample: int, again: Array | None = None
    ) -> bool:
        """Adds one batch. Returns False when its values cannot be compared; `fault` says why.

        again: the same output of another run in FP32, which differs only by rounding.
        """
        import numpy as np

        wanted = batch.outputs[self.name]
        if wanted.shape != found.shape:
            return self._unusable(f"its shape is {found.shape}, and the reference's {wanted.shape}")
        kept = _kept(batch, self.how, wanted.shape)
        x, y = wanted.astype(np.float64), found.astype(np.float64)
        # Padding does not count, nor does an infinity that FP32 has too.
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
        values = Values(
            x,
            y,
            (~ignored).astype(np.float64) if ignored.any() else None,
            _moved(y, again, ignored),
        )
        if batch.corner:
            self.corners.append((batch.corner, Sums.of(values)))
            return True
        self.whole.add(Sums.of(values))
        self._parts(values, batch, first_sample)
        if wanted.dtype.name in DISCRETE:
            self.discrete += x.size - int(ignored.sum())
            self.equal += int(((x == y) & ~ignored).sum())
        if self.name in self.how.class_scores and x.ndim:
            self._classes(wanted, found, kept, batch.labels)
        return True

    def _unusable(self, why: str) -> bool:
        self.fault = self.fault or why
        return False

    def _parts(self, values: Values, batch: ReferenceBatch, first_sample: int) -> None:
        x = values.wanted
        if x.ndim < 2 or not x.size:
            return
        if x.shape[0] == batch.samples:
            for index, sums in enumerate(Sums.along(values, 0).each()):
                self.samples.append((f"sample {first_sample + index}", sums))
        scores = self.name in self.how.class_scores  # compared by top-1
        if x.ndim == 2 and self.name not in self.how.slices:
            return
        axes = {1} if x.ndim != 3 or self.name in self.how.slices else {1, 2}
        for axis in axes if not scores or self.name in self.how.slices else ():
            sums = Sums.along(values, axis)
            self.channels.setdefault(axis, Sums()).add(sums)

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
        labels = fit_labels(self.name, wanted.shape, labels, self.how)
        use = use & (labels >= 0)
        self.labeled += int(use.sum())
        self.right += int((ours == labels)[use].sum())
        self.reference_right += int((theirs == labels)[use].sum())

    def result(self) -> OutputComparison:
        """The figures; cosine 0 and relative L2 UNUSABLE if the outputs cannot be compared."""
        if self.fault:
            return OutputComparison(
                output=self.name,
                cosine=0.0,
                max_abs=UNUSABLE,
                relative_l2=UNUSABLE,
                fault=self.fault,
            )
        cosine, relative, largest, rounding = self.whole.figures(self.how.near_zero)
        return OutputComparison(
            output=self.name,
            cosine=cosine,
            max_abs=largest,
            relative_l2=relative,
            rounding=rounding,
            top1_agreement=self.agree / self.rows if self.rows else None,
            equal=self.equal / self.discrete if self.discrete else None,
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
            sums = self.channels.get(1, Sums())
            parts = [(f"slice {name}", sums.between(*ends)) for name, ends in named.items()]
            return found + self._of("slice", parts, far)
        for axis, sums in sorted(self.channels.items()):
            parts = [(f"axis {axis}, index {i}", one) for i, one in enumerate(sums.each())]
            found += self._of("channel", parts, far)
        return found

    def _of(
        self,
        kind: Literal["sample", "channel", "slice", "corner"],
        parts: list[tuple[str, Sums]],
        floor: float,
    ) -> list[Part]:
        """The worst parts by cosine, relative L2 and rounding, which are often the same."""
        floor = max(floor, self.how.near_zero)
        made = [
            Part(
                kind=kind,
                where=where,
                cosine=cosine,
                relative_l2=relative,
                max_abs=largest,
                rounding=rounding,
            )
            for where, sums in parts
            for cosine, relative, largest, rounding in [sums.figures(floor)]
        ]
        if not made:
            return []
        worst = [min(made, key=lambda one: one.cosine), max(made, key=lambda one: one.relative_l2)]
        most = max(made, key=lambda one: one.rounding)
        return list(dict.fromkeys([*worst, most] if most.rounding else worst))


IGNORED = 255
"""The class of places that do not count in data sets of segmentation, as negative ones are."""


def fit_labels(name: str, shape: tuple[int, ...], labels: Array, how: ComparisonRules) -> Array:
    """The labels, with a negative number wherever none counts.

    Raises: CalibrationError unless labels are one class for each place of the output.
    """
    import numpy as np

    axis = how.axis_of_classes(len(shape))
    places = (*shape[:axis], *shape[axis + 1 :])
    if labels.shape != places:
        raise CalibrationError(
            f"data.labels: labels of shape {labels.shape} do not fit output {name!r}",
            why=f"its shape is {shape}, with the classes along axis {axis}",
            fix=f"provide labels of shape {places}, or write `verification.class_axis`",
        )
    if labels.dtype.kind not in "iub" and not (
        labels.dtype.kind == "f" and np.array_equal(labels, np.rint(labels))
    ):
        raise CalibrationError(
            f"data.labels: labels are of the type {labels.dtype}, and not numbers of classes",
            fix="provide the index of each class along the class axis of the output, from 0",
        )
    classes = shape[axis] if shape else 0
    unused = (labels == IGNORED) if classes <= IGNORED else np.zeros(labels.shape, bool)
    outside = labels[(labels >= classes) & ~unused]
    if outside.size:
        raise CalibrationError(
            f"data.labels: {outside[0]} is not one of the {classes} classes of output {name!r}",
            why=f"its shape is {shape}, with the classes along axis {axis}",
            fix="classes count from 0; places that do not count have a negative label, or "
            f"{IGNORED}",
        )
    return np.where(unused, -1, labels.astype(np.int64)) if unused.any() else labels


def _moved(found: Array, again: Array | None, ignored: Array) -> Array | None:
    """The difference between the other run and this one, where both are numbers; None without
    another run, or if its sizes differ."""
    import numpy as np

    if again is None or again.dtype.kind != "f" or again.shape != found.shape:
        return None
    difference = np.where(ignored, 0, again.astype(np.float64) - found)
    return np.where(np.isfinite(difference), difference, 0)


def _kept(batch: ReferenceBatch, how: ComparisonRules, shape: tuple[int, ...]) -> Array | None:
    """Where an output of that shape is not padding, according to the mask; None if the mask does
    not apply. The mask's axes are the output's first ones, or its first and its last."""
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
