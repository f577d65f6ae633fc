"""Keeps the choices in build-model's run form up to date: recipes, and the GPUs that they name.

The control worker lists its recipe roots, and the store if that is one of them, and writes the
choices into the deployment's schema when they have changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.exceptions import ObjectNotFound

from enginefarm.documents import gpus
from enginefarm.errors import EnginefarmError
from enginefarm.farm import parameters
from enginefarm.recipes import file as recipe_file
from enginefarm.recipes import recipe_store
from enginefarm.settings import STORE_ROOT, current
from enginefarm.store.engine_store import EngineStore

DEPLOYMENT = "build-model/build-model"

MOST = 500
"""With more recipes than this the form only has a field for the path."""

CHOSEN, TYPED = "one of these", "a path"


class Choices(NamedTuple):
    """What the form offers: paths as build-model takes them, and GPU labels."""

    recipes: tuple[str, ...]
    gpus: tuple[str, ...]


def choices(store: EngineStore, roots: Sequence[Path]) -> Choices:
    """A recipe that cannot be read is offered too: its run says why. Raises: StoreError."""
    local = {_display_path(file, root): file for root in roots for file in recipe_file.below(root)}
    kept = recipe_store.names(store) if current().recipes_in_store else ()
    named: set[str] = set()
    for file in local.values():
        try:
            named |= set(recipe_file.load(file).gpus)
        except EnginefarmError:
            continue
    # Recipes in the store are not opened for this, so they may name any GPU.
    fitting = tuple(label for label in gpus.table() if label in named or kept or not named)
    return Choices((*sorted(local), *(f"{STORE_ROOT}/{name}" for name in kept)), fitting)


def refresh(client: SyncPrefectClient, store: EngineStore) -> bool:
    """Whether the form has changed. Raises: StoreError; what Prefect's client raises."""
    try:
        deployment = client.read_deployment_by_name(DEPLOYMENT)
    except ObjectNotFound:
        return False
    schema = deployment.parameter_openapi_schema
    if schema is None:
        return False
    wanted = with_choices(schema, choices(store, parameters.roots()))
    if wanted == schema:
        return False
    client.update_deployment(deployment.id, DeploymentUpdate(parameter_openapi_schema=wanted))
    return True


def with_choices(schema: dict[str, Any], found: Choices) -> dict[str, Any]:
    """The schema with these choices; a path may still be typed, for a recipe not yet seen."""
    made = deepcopy(schema)
    recipe, labels = made["properties"]["recipe"], made["properties"]["gpus"]
    typed = {"title": TYPED, "type": "string", "minLength": 1, "maxLength": 500}
    for name in ("type", "minLength", "maxLength", "anyOf"):
        recipe.pop(name, None)
    if 0 < len(found.recipes) <= MOST:
        chosen = {"title": CHOSEN, "type": "string", "enum": list(found.recipes)}
        recipe["anyOf"] = [chosen, typed]
    else:
        recipe |= {name: value for name, value in typed.items() if name != "title"}
    labels["items"]["enum"] = list(found.gpus)
    return made


def _display_path(file: Path, root: Path) -> str:
    """Its folder, from the root; the file itself where it lies in the root."""
    folder = file.parent.relative_to(root)
    return file.name if folder == Path() else str(folder)
