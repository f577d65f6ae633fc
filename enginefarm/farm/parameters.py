"""The types of the deployments' parameters, which decide what the run form accepts.

The form's help texts are in the flows' docstrings, where Prefect reads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from prefect.runtime import deployment, flow_run
from pydantic import Field

from enginefarm.documents import gpus
from enginefarm.documents.recipe import Recipe
from enginefarm.errors import EnginefarmError, RecipeError
from enginefarm.names import PrecisionName
from enginefarm.planning import stages
from enginefarm.recipes import file as recipe_file
from enginefarm.recipes import recipe_store
from enginefarm.recipes.file import FILE_NAME
from enginefarm.settings import STORE_ROOT, current

NAME_LENGTH = 200

ROOTS = "ENGINEFARM_RECIPE_ROOTS"

GpuLabel = Literal[tuple(gpus.table())]  # type: ignore[valid-type]  # the rows are the choices

Gpus = list[GpuLabel]

Precisions = list[PrecisionName]

RecipePath = Annotated[str, Field(min_length=1, max_length=500)]

Folder = Annotated[str, Field(min_length=1, max_length=500)]

SpecDigest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def roots() -> tuple[Path, ...]:
    """Folders that recipes may come from: ENGINEFARM_RECIPE_ROOTS, else the working folder."""
    named = current().recipe_roots
    return (Path.cwd().resolve(),) if named is None else named


def recipe_file_at(path: str) -> Path:
    """The recipe's file, inside one of the roots; of `@store/NAME`, in this machine's cache.

    Raises: RecipeError for a path that leads elsewhere, by links or `..` too, or to nothing;
    what recipe_store.unpacked raises.
    A recipe names code to run: only folders that the farm's owner chose may hold one.
    """
    if path.startswith(f"{STORE_ROOT}/"):
        return recipe_store.unpacked(stages.here(), path.removeprefix(f"{STORE_ROOT}/"))
    for real in _candidates(path):
        file = real / FILE_NAME if real.is_dir() else real
        if file.is_file():
            return file
    raise _not_found(path, "file")


def recipes_in(folder: str) -> tuple[Path, ...]:
    """What build-model takes for each recipe below a folder, or for each in the store.

    Raises: RecipeError when there is none.
    """
    if folder != STORE_ROOT:
        found_below = recipe_file.below(folder_at(folder))
        if not found_below:
            raise RecipeError(
                f"nightly: there is no {FILE_NAME} under {folder}",
                fix="name the folder that holds the recipes' folders",
            )
        return found_below
    found = recipe_store.names(stages.here().store)
    if not found:
        raise RecipeError(
            "nightly: the store holds no recipe", fix="enginefarm recipes push FOLDER"
        )
    return tuple(Path(STORE_ROOT, name) for name in found)


def build_name() -> str:
    """A build-model run's name: the recipe's, and its GPUs; the path of one that is not read."""
    given = flow_run.parameters
    path = str(given["recipe"])
    try:
        file = recipe_file_at(path) if deployment.id is not None else Path(path)
        wanted = recipe_file.load(file)
    except EnginefarmError:
        return path
    return f"{wanted.name} · {', '.join(given.get('gpus') or wanted.gpus)}"[:NAME_LENGTH]


def recipe_at(path: Path) -> Recipe:
    """The recipe that recipe_file_at finds. Raises: as it does; RecipeError for its mistakes."""
    return recipe_file.load(recipe_file_at(str(path)))


def folder_at(path: str) -> Path:
    """A folder inside one of the roots. Raises: RecipeError."""
    for real in _candidates(path):
        if real.is_dir():
            return real
    raise _not_found(path, "folder")


def _candidates(path: str) -> list[Path]:
    allowed = roots()
    candidates = [Path(path)] if Path(path).is_absolute() else [root / path for root in allowed]
    inside = [
        real
        for real in (candidate.resolve() for candidate in candidates)
        if any(real.is_relative_to(root) for root in allowed)
    ]
    if not inside:
        raise RecipeError(
            f"recipe: {path} is outside the folders that recipes may come from",
            why=f"this worker allows {', '.join(map(str, allowed))}",
            fix=f"move it there, or start the control worker with {ROOTS} naming its folder",
        )
    return inside


def _not_found(path: str, kind: str) -> RecipeError:
    return RecipeError(
        f"recipe: there is no {kind} {path}",
        why=f"looked in {', '.join(map(str, roots()))}",
        fix="correct the path; it is read on the control worker's machine",
    )
