"""What judges a search for nodes to keep wide: the verification, and in 8 bits a stricter judge.

They run in the process of the search, which is a child already.
"""

from __future__ import annotations

import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from enginefarm.documents.recipe import Recipe
from enginefarm.documents.thresholds import Budget
from enginefarm.errors import CalibrationError
from enginefarm.graph.model import ort
from enginefarm.graph.order import Order
from enginefarm.graph.precisions.evidence import Evidence
from enginefarm.graph.samples import data
from enginefarm.graph.verification.reference import ReferenceBatch, write_batch
from enginefarm.graph.verification.verify import VerificationRequest, passes
from enginefarm.names import PRECISIONS

MARGIN = 2 / 3
"""The part of a recipe's own budget within which an 8-bit graph is made once its operators are
searched for by the data that it is judged on (docs/decisions/0273)."""
SAMPLES = 64
"""The most samples of the calibration data that are looked at: each graph that is tried runs on
them."""


@contextmanager
def evidence(order: Order) -> Generator[Evidence | None]:
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
