"""What a stage of a recipe is asked to do."""

from __future__ import annotations

from pathlib import Path

from enginefarm.documents.recipe import Recipe
from enginefarm.schema import Frozen


class Order(Frozen):
    """What a stage is to work on. folder: where its files go. onnx: the graph it starts from.
    reference: what a precision is measured against. memory: where its search for nodes to keep
    wide takes notes; None: no search. largest: `ranges.observe` of the graph; None: not known."""

    recipe: Recipe
    root: Path
    folder: Path
    onnx: Path | None = None
    precision: str = ""
    reference: Path | None = None
    memory: Path | None = None
    largest: dict[str, float] | None = None
    outputs: tuple[str, ...] = ()

    @property
    def placed(self) -> Recipe:
        """The recipe, its relative paths resolved from its own folder."""
        return self.recipe.at(self.root)

    @property
    def graph(self) -> Path:
        assert self.onnx is not None, "this stage starts from a graph"
        return self.onnx
