"""What a precision may look at beside the graph: the FP32 reference, and what judges a search for
nodes to keep wide. That is the verification, and in 8 bits a stricter judge.

They run in the process of the search, which is a child already.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from enginefarm.documents.recipe import Recipe
from enginefarm.documents.thresholds import Budget
from enginefarm.errors import CalibrationError
from enginefarm.graph.model import ort
from enginefarm.graph.order import Order
from enginefarm.graph.samples import data
from enginefarm.graph.verification.reference import ReferenceBatch, read_reference, write_batch
from enginefarm.graph.verification.verify import VerificationRequest, passes
from enginefarm.names import PRECISIONS

MARGIN = 2 / 3
"""The part of a recipe's own budget within which an 8-bit graph is made once its operators are
searched for by the data that it is judged on (docs/decisions/0273)."""
SAMPLES = 64
"""The most samples of the calibration data that are looked at: each graph that is tried runs on
them."""


@dataclass(frozen=True)
class Evidence:
    """reference: of `make_reference`. largest: `ranges.observe` of the graph on its inputs; None:
    not known yet.

    judge: whether the graph at a path passes the whole verification. With it, nodes are searched
    for that have to stay wide; None if no search is wanted.
    tries: how many graphs the search may run or verify. memory: where it notes what it measured.
    careful: a stricter judge, for what is chosen by the reference's own data. always: a graph that
    satisfies `judge` alone is searched, too. judged_as: what the search calls the judge in its
    notes.
    """

    reference: Path
    largest: Mapping[str, float] | None = None
    judge: Callable[[Path], bool] | None = None
    tries: int = 0
    memory: Path | None = None
    careful: Callable[[Path], bool] | None = None
    always: bool = False
    judged_as: str = "accepted"

    def by_careful(self) -> Evidence | None:
        """The same with the careful judge; None where there is none."""
        if self.careful is None:
            return None
        return replace(self, judge=self.careful, careful=None, judged_as="accepted with care")

    def batches(self) -> Iterator[ReferenceBatch]:
        """Inputs and FP32 outputs, one batch in memory at a time."""
        yield from read_reference(self.reference)


@contextmanager
def of_order(order: Order) -> Generator[Evidence | None]:
    """The reference, and where a search is wanted, the whole verification as its judge.

    The careful judge of 8 bits looks at the calibration data, too: it is more data of the kind.
    """
    reference, recipe = order.reference, order.placed
    if reference is None:
        yield None
        return
    if order.memory is None:
        yield Evidence(reference, order.largest)
        return
    budget, comparing = recipe.budget(order.precision), recipe.verification.comparing

    def within(limits: Budget, graph: Path, data: Path = reference) -> bool:
        return passes(
            VerificationRequest(onnx=graph, reference=data, budget=limits, comparing=comparing)
        )

    seen = reference, order.largest
    made = partial(Evidence, *seen, tries=recipe.search_tries, memory=order.memory)
    if not PRECISIONS[order.precision].calibrated:
        yield made(judge=partial(within, budget.with_margin))
        return
    limits = budget.part(MARGIN) if budget.margin == 1 else budget.with_margin
    with TemporaryDirectory(prefix="enginefarm-") as folder:
        more = Path(folder) / "calibration.npz"

        def careful(graph: Path) -> bool:
            if not within(limits, graph):
                return False
            if not more.exists():
                calibration_reference(order.graph, recipe, more)
            return within(limits, graph, more)

        yield made(judge=partial(within, budget), careful=careful, always=budget.margin < 1)


def calibration_reference(graph: Path, recipe: Recipe, dest: Path) -> None:
    """What the FP32 graph returns for the first SAMPLES samples of the calibration data, in the
    format of `reference.make_reference`. Batches for which it returns NaN are left out.

    Raises: CalibrationError.
    """
    assert recipe.calibration is not None, "8 bits are calibrated"
    what = "the calibration data"
    session = ort.session(graph, error=CalibrationError, what=what, plain=True)
    count = 0
    with zipfile.ZipFile(dest, "w") as archive:
        for index, batch in enumerate(data.calibration_batches(recipe)):
            inputs, labels = data.split(batch, recipe.calibration.data)
            found = ort.run(session, inputs, error=CalibrationError, what=what)
            made = ReferenceBatch(inputs, found, labels)
            if not any(np.isnan(array).any() for array in found.values()):
                write_batch(archive, index, made)
            count += made.samples
            if count >= SAMPLES:
                return
