"""The files of a recipe's folder that are pushed, and whether they are complete."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import get_args, get_type_hints

from enginefarm.documents.recipe import Recipe
from enginefarm.errors import EnginefarmError, RecipeError
from enginefarm.recipes import import_path
from enginefarm.schema import FilePath, ImportPath

MOST_FILES = 10_000
SEGMENT = re.compile(r"\w[\w.@+ -]{0,200}")


def files_to_push(folder: Path) -> dict[str, Path]:
    """The files that are pushed with a recipe: all in its folder, except hidden ones and bytecode.

    Raises: RecipeError for too many, for a link that leads out, and for a name that not every
    machine can write.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if not path.is_file() or "__pycache__" in parts or any(p.startswith(".") for p in parts):
            continue
        name = "/".join(parts)
        if not all(SEGMENT.fullmatch(part) for part in parts):
            raise RecipeError(f"recipes push: {name!r} is not a valid file name on every machine")
        if not path.resolve().is_relative_to(folder):
            raise RecipeError(
                f"recipes push: {name} is a link that leads out of the recipe's folder",
                fix="put the file itself there",
            )
        found[name] = path
        if len(found) > MOST_FILES:
            raise RecipeError(
                f"recipes push: {folder} has more than {MOST_FILES} files",
                fix="move the recipe to its own folder, or its data into one .npz",
            )
    return found


def require_complete(recipe: Recipe, files: dict[str, Path]) -> None:
    """Raises: RecipeError when the recipe needs a file or module that is not pushed."""
    code = [*_named(recipe, ImportPath)]
    modules = [(field, path.partition(":")[0]) for field, path in code]
    named = [*_named(recipe, FilePath), *(pair for pair in modules if pair[1].endswith(".py"))]
    for field, path in named:
        if path.startswith("s3://"):
            continue
        parts = PurePosixPath(path).parts
        if ".." in parts or PurePosixPath(path).is_absolute():
            raise _not_carried(f"{field}: {path!r} is outside the recipe's folder")
        inside = "/".join(part for part in parts if part != ".")
        if inside not in files and not any(name.startswith(f"{inside}/") for name in files):
            raise _not_carried(f"{field}: {path!r} is not in the recipe's folder")
    for field, path in code:
        _require_packages(recipe.root, field, path)


def _named(recipe: Recipe, kind: object) -> Iterator[tuple[str, str]]:
    """Each field of that type of `schema` in the recipe, and each path in it."""
    data = [recipe.calibration and recipe.calibration.data, recipe.verification.data]
    parts = [("source.", recipe.source), ("", recipe), *(("data.", one) for one in data if one)]
    for prefix, part in parts:
        for name, hint in get_type_hints(type(part), include_extras=True).items():
            if kind in (hint, *get_args(hint)):
                found: str | tuple[str, ...] | None = getattr(part, name)
                many = found if isinstance(found, tuple) else (found,)
                yield from ((prefix + name, one) for one in many if one)


def _require_packages(root: Path, field: str, path: str) -> None:
    modules = import_path.local_modules(path, root, field=field)
    inside = root.resolve()
    local = [
        name
        for name, file in modules.items()
        if not file.resolve().is_relative_to(inside) and name.partition(".")[0] != "enginefarm"
    ]
    if local:
        raise _not_carried(
            f"{field}: {path!r} imports {', '.join(local)}, which no installed package has"
        )


def _not_carried(what: str) -> EnginefarmError:
    return RecipeError(
        f"recipes push: {what}",
        why="the control worker gets the recipe's folder, and nothing else of this machine",
        fix="put files and code into the folder, or code into an installed package",
    )
