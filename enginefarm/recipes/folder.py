"""The files of a recipe's folder that are pushed, and whether they are complete."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from enginefarm.documents.data import Data
from enginefarm.documents.recipe import Recipe
from enginefarm.errors import EnginefarmError, RecipeError
from enginefarm.recipes import import_path

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
                fix="give the recipe a folder of its own, or its data one .npz",
            )
    return found


def require_complete(recipe: Recipe, files: dict[str, Path]) -> None:
    """Raises: RecipeError when the recipe needs a file or module that is not pushed."""
    datas = (recipe.calibration.data if recipe.calibration else None, recipe.verification.data)
    data = [one for one in datas if one is not None]
    for field, path in [*_paths(recipe), *(pair for one in data for pair in _data_paths(one))]:
        if path.startswith("s3://"):
            continue
        parts = PurePosixPath(path).parts
        if ".." in parts or PurePosixPath(path).is_absolute():
            raise _not_carried(f"{field}: {path!r} is outside the recipe's folder")
        inside = "/".join(part for part in parts if part != ".")
        if inside not in files and not any(name.startswith(f"{inside}/") for name in files):
            raise _not_carried(f"{field}: {path!r} is not in the recipe's folder")
    for field, path in [*_code(recipe), *(("data.callable", one.callable) for one in data)]:
        if path is not None:
            _require_packages(recipe.root, field, path)


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
        fix="put files into the folder; code beside it, or into an installed package",
    )


def _paths(recipe: Recipe) -> list[tuple[str, str]]:
    source = recipe.source.model_dump(mode="json")
    single = [(f"source.{key}", source[key]) for key in ("path", "checkpoint") if source.get(key)]
    depends = [("source.depends", path) for path in source.get("depends", ())]
    code = [(field, path.partition(":")[0]) for field, path in _code(recipe)]
    plugins = [("plugins", path) for path in recipe.plugins]
    return [*single, *depends, *plugins, *(pair for pair in code if pair[1].endswith(".py"))]


def _code(recipe: Recipe) -> list[tuple[str, str]]:
    source = recipe.source.model_dump(mode="json")
    return [(f"source.{key}", source[key]) for key in ("callable", "module") if source.get(key)]


def _data_paths(data: Data) -> list[tuple[str, str]]:
    code = (data.callable or "").partition(":")[0]
    named = [("data.path", data.path or ""), ("data.callable", code if ".py" in code else "")]
    return [
        pair for pair in (*named, *(("data.depends", path) for path in data.depends)) if pair[1]
    ]
