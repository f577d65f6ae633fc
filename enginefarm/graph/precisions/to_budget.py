"""The search for nodes to keep wide, run on graphs of one precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from enginefarm.graph.model import onnx_files
from enginefarm.graph.precisions import screen
from enginefarm.graph.precisions.evidence import Evidence
from enginefarm.graph.precisions.search import Search, SearchResult

if TYPE_CHECKING:
    from onnx import ModelProto


def search(
    made: Callable[[frozenset[str]], ModelProto],
    groups: Sequence[Sequence[str]],
    evidence: Evidence,
) -> SearchResult | None:
    """made: the graph with these nodes wide, beside those that are anyway; it may be changed.

    groups: candidates; each is tried only where those before it are not enough.
    """
    if evidence.judge is None or evidence.tries == 0:
        return None
    batches = list(islice(evidence.batches(), screen.BATCHES))

    def fits(wide: frozenset[str]) -> bool:
        return accepted(made(wide), evidence)

    def noise(wide: frozenset[str]) -> float:
        return screen.noise(made(wide), batches)

    for candidates in groups:
        named = evidence.judged_as
        found = Search(noise, fits, evidence.tries, evidence.memory, named).run(candidates)
        if found is not None:
            return found
    return None


def accepted(model: ModelProto, evidence: Evidence) -> bool:
    """Whether the judge accepts the graph. Without a judge: yes."""
    if evidence.judge is None:
        return True
    with TemporaryDirectory(prefix="enginefarm-") as folder:
        return evidence.judge(onnx_files.write(model, Path(folder)))
