"""What the shell offers at Tab: GPUs, precisions, and the recipes and channels of the store.

Whatever goes wrong, nothing is offered: an error would land in the line that somebody types.
bash takes `@` for the end of a word, so that only zsh and fish complete `NAME@CHANNEL`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from enginefarm.errors import EnginefarmError
from enginefarm.names import PRECISION_NAMES
from enginefarm.settings import current

if TYPE_CHECKING:
    from enginefarm.store.engine_store import EngineStore

WAIT_S = 2
STORED = "@store/"


def gpus(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Labels of the GPU table; after a comma the next one."""
    from enginefarm.documents import gpus

    done, comma, last = begun.rpartition(",")
    return [
        CompletionItem(f"{done}{comma}{row.label}", help=f"sm_{row.compute_capability}")
        for row in gpus.table().values()
        if row.label.startswith(last.lower())
    ]


def precisions(
    context: click.Context, parameter: click.Parameter, begun: str
) -> list[CompletionItem]:
    """Names of precisions; after a comma the next one."""
    done, comma, last = begun.rpartition(",")
    names = (name for name in PRECISION_NAMES if name.startswith(last.lower()))
    return [CompletionItem(f"{done}{comma}{name}") for name in names]


def engines(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Recipes that have engines in the store; after an @ the recipe's channels."""
    recipe, at, _ = begun.partition("@")
    if at:
        return _offered(
            begun, lambda store: (f"{recipe}@{one}" for one in _channels(store, recipe))
        )
    return _offered(begun, lambda store: store.recipes())


def channels(
    context: click.Context, parameter: click.Parameter, begun: str
) -> list[CompletionItem]:
    """Channels of the recipe that is in the line already."""
    # Behind an option that has no value yet, click has not told arguments from one another.
    recipe = str(context.params.get("recipe") or next(iter(context.args), ""))
    return _offered(begun, lambda store: _channels(store, recipe)) if recipe else []


def stored(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Recipes that were pushed to the store."""
    return _offered(begun, _pushed)


def recipe_files(
    context: click.Context, parameter: click.Parameter, begun: str
) -> list[CompletionItem]:
    """Files; after an @ the recipes that were pushed to the store."""
    if not begun.startswith("@"):
        return [CompletionItem(begun, type="file")]
    return _offered(begun, lambda store: (STORED + name for name in _pushed(store)))


def _channels(store: EngineStore, recipe: str) -> Iterable[str]:
    from enginefarm.store import channels

    return channels.names(store, recipe)


def _pushed(store: EngineStore) -> Iterable[str]:
    from enginefarm.recipes import recipe_store

    return recipe_store.names(store)


def _offered(begun: str, ask: Callable[[EngineStore], Iterable[str]]) -> list[CompletionItem]:
    with suppress(EnginefarmError, OSError, ValueError):
        store = _store()
        if store is not None:
            return [CompletionItem(name) for name in sorted(ask(store)) if name.startswith(begun)]
    return []


def _store() -> EngineStore | None:
    """The store, asked once and not for long; None where a server would have to be started."""
    from enginefarm.store import EMBEDDED, client, embedded, s3
    from enginefarm.store.engine_store import EngineStore

    url, endpoint, credentials = current().store, None, None
    if not url or url.startswith(EMBEDDED):
        server = embedded.running(embedded.home_of(url))
        if server is None:
            return None
        url, endpoint = f"s3://{embedded.BUCKET}", server.endpoint
        credentials = server.credentials
    objects = s3.connect(
        url,
        endpoint=endpoint,
        credentials=credentials,
        patience=client.Patience(1, WAIT_S, WAIT_S),
    )
    return EngineStore(objects, url)
