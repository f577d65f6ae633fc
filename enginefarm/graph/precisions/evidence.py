"""What a precision may look at beside the graph: the FP32 reference, and how it is judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from enginefarm.graph.verification.reference import ReferenceBatch


@dataclass(frozen=True)
class Evidence:
    """reference: of `make_reference`. largest: `ranges.observe` of the graph on its inputs; None:
    not known yet.

    judge: whether the graph at a path passes the whole verification. With it, nodes are searched
    for that have to stay wide; None if no search is wanted.
    tries: how many graphs the search may run or judge. memory: where it notes what it measured.
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
        from enginefarm.graph.verification.reference import read_reference

        yield from read_reference(self.reference)
