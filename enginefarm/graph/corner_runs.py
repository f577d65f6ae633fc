"""Runs a graph at every corner of its recipe's profiles."""

from __future__ import annotations

from pathlib import Path

from enginefarm.documents.recipe import Recipe
from enginefarm.errors import ExportError, SourceError
from enginefarm.graph import feeds, ort


def run_corners(
    path: Path,
    recipe: Recipe,
    sample: feeds.Arrays,
    error: type[ExportError] | type[SourceError],
) -> dict[str, int]:
    """Each output -> its number of dims. Raises: `error` when the graph fails at a corner."""
    session = ort.session(path, error=error, what=f"the graph of {recipe.name}")
    likely = "a dim is not as dynamic as the recipe says"
    if recipe.verification_data.random:
        likely += ", or the model does not accept random numbers (provide your own data)"
    ranks: dict[str, int] = {}
    for label, dims in feeds.corners(recipe):
        found = ort.run(
            session,
            feeds.sized(sample, recipe, dims),
            error=error,
            what=label,
            likely=likely,
        )
        ranks = {name: array.ndim for name, array in found.items()}
    return ranks
