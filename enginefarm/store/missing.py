"""The error of every command for an engine that the store does not have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from enginefarm.errors import StoreMissing, command, did_you_mean

if TYPE_CHECKING:
    from enginefarm.store.engine_store import EngineStore


def no_engine(usual: str, store: EngineStore, recipe: str) -> StoreMissing:
    """The error to raise when no engine of that recipe was found.

    usual: the command to name in the error when the user ran none.
    If the store does not have the recipe, it lists the store's recipes and suggests the one with
    the most similar name.
    """
    known = sorted(store.recipes())
    asked = command(usual)
    if recipe in known:
        return StoreMissing(
            f"{asked}: the store {store.url} has no such engine of {recipe!r}",
            fix=f"`enginefarm list {recipe}` shows the engines that it has",
        )
    return StoreMissing(
        f"{asked}: the store {store.url} has no recipe {recipe!r}",
        why=f"its recipes are: {', '.join(known)}" if known else "it holds no engine yet",
        fix=did_you_mean(recipe, known) or "build it first, or check ENGINEFARM_STORE",
    )
