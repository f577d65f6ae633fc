"""The plugin libraries that a recipe names."""

from __future__ import annotations

from pathlib import Path

from enginefarm.digest import sha256_file
from enginefarm.documents.recipe import Recipe
from enginefarm.documents.spec import BlobRef
from enginefarm.errors import RecipeError
from enginefarm.graph.sources.local_file import local_file
from enginefarm.store.site import Site


def kept(site: Site, recipe: Recipe) -> tuple[BlobRef, ...]:
    """The plugin libraries in the store, where the builders find them."""
    refs = tuple(site.cache.add(path) for path in _libraries(recipe))
    for ref in refs:
        site.store.put_blob(site.cache.path(ref))
    return refs


def digests(recipe: Recipe) -> tuple[str, ...]:
    return tuple(sha256_file(path) for path in _libraries(recipe))


def _libraries(recipe: Recipe) -> list[Path]:
    """Raises: RecipeError for a library that is not there, or not a regular file."""
    return [
        local_file(path, recipe.root, field="plugins", error=RecipeError) for path in recipe.plugins
    ]
