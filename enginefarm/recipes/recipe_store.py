"""Recipes kept in the store: a recipe's whole folder, by digest, under the recipe's name.

recipes/<name>.json    its files and who signed them; the files are blobs

A recipe names code to run, so anybody who can write `recipes/` can run code on the control
worker. A worker takes none unless its roots name the store (settings.STORE_ROOT); with a
trust key it takes only what one of these keys signed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from pydantic import Field, field_validator

from enginefarm.digest import sha256_file
from enginefarm.documents.signed import SignedDocument
from enginefarm.documents.spec import BlobRef
from enginefarm.errors import (
    CorruptBlob,
    NewerVersion,
    RecipeError,
    StoreConflict,
    StoreMissing,
    did_you_mean,
)
from enginefarm.recipes import file as recipe_file
from enginefarm.recipes.folder import MOST_FILES, SEGMENT, files_to_push, require_complete
from enginefarm.schema import NAME, Moment, Name
from enginefarm.settings import STORE_ROOT, current, user
from enginefarm.store import signing, statements
from enginefarm.store.disk import clone_checked
from enginefarm.store.engine_store import READERS, EngineStore
from enginefarm.store.reading import or_left_out
from enginefarm.store.reading import read as read_document
from enginefarm.store.site import Site

RECIPES = "recipes/"
KEY = re.compile(rf"{RECIPES}(?P<name>{NAME.strip('^$')})\.json")
REPAIR = "push it again: enginefarm recipes push FOLDER"


class StoredRecipe(SignedDocument):
    """The files of a recipe's folder, by their path in it."""

    schema_version: int = 2
    name: Name
    files: dict[str, BlobRef] = Field(min_length=1, max_length=MOST_FILES)
    by: str
    at: Moment

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, BlobRef]) -> dict[str, BlobRef]:
        for path in files:
            if not all(SEGMENT.fullmatch(part) for part in path.split("/")):
                raise ValueError(f"{path!r} is not a path inside a recipe's folder")
        if recipe_file.FILE_NAME not in files:
            raise ValueError(f"there is no {recipe_file.FILE_NAME} among its files")
        return files

    @property
    def size_bytes(self) -> int:
        return sum(ref.size_bytes for ref in self.files.values())


def push(store: EngineStore, path: Path) -> StoredRecipe:
    """Puts the folder of a recipe into the store, in place of what had its name before.

    path: the folder, or its recipe.yaml. Signed where ENGINEFARM_SIGNING_KEY is set.
    Raises: RecipeError for a recipe that needs what is not in its folder; what loading it
    raises; StoreConflict when somebody else pushed it meanwhile.
    """
    if path.is_file() and path.name != recipe_file.FILE_NAME:
        raise RecipeError(
            f"recipes push: {path} is not called {recipe_file.FILE_NAME}",
            fix="give each recipe a folder of its own, with its recipe.yaml in it",
        )
    folder = path.parent if path.is_file() else path
    recipe = recipe_file.load(folder)
    files = files_to_push(folder.resolve())
    require_complete(recipe, files)
    with ThreadPoolExecutor(READERS) as pool:
        blobs = dict(zip(files, pool.map(store.put_blob, files.values()), strict=True))
    made = StoredRecipe(name=recipe.name, files=blobs, by=user(), at=datetime.now(UTC))
    signer = signing.signer()
    if signer is not None:
        made = statements.sign(made, signer)
    key, body = _key(made.name), made.canonical_json()
    before = store.objects.get(key)
    if before is not None:
        store.objects.put_if_match(key, body, before[1])
    elif store.objects.put_if_absent(key, body) is None:
        raise StoreConflict(f"store: {key} was created by somebody else first")
    return made


def names(store: EngineStore) -> tuple[str, ...]:
    """Every recipe in the store, from one listing; a stray object is passed over."""
    keys = (KEY.fullmatch(info.key) for info in store.objects.list(RECIPES))
    return tuple(key["name"] for key in keys if key is not None)


def readable(store: EngineStore) -> Iterator[StoredRecipe]:
    """Every recipe in the store that this version can read; one that it cannot is left out with
    a note."""
    for name in names(store):
        found = or_left_out(lambda name=name: read(store, name), CorruptBlob, NewerVersion)
        if found is not None:
            yield found


def read(store: EngineStore, name: str) -> StoredRecipe:
    """Raises: StoreMissing, CorruptBlob; NewerVersion."""
    found = read_document(store.objects, _key(name), StoredRecipe, REPAIR)
    if found is None:
        known = names(store)
        raise StoreMissing(
            f"recipe: the store has no recipe {name!r}",
            why=f"its recipes are: {', '.join(known)}" if known else "no recipe was pushed yet",
            fix=did_you_mean(name, known) or "enginefarm recipes push FOLDER",
        )
    if found.name != name:
        raise CorruptBlob(f"store: {_key(name)} holds another recipe, {found.name}", fix=REPAIR)
    return found


def remove(store: EngineStore, name: str) -> None:
    """Takes a recipe out, also one that this version cannot read; its engines stay. Raises:
    StoreMissing."""
    with suppress(CorruptBlob, NewerVersion):
        read(store, name)
    store.objects.delete(_key(name))


def unpacked(site: Site, name: str) -> Path:
    """The recipe's file, in a folder of this machine's cache; every file's digest checked.

    Raises: RecipeError where this worker takes no recipes from the store; SignatureRejected
    where it has a trust key and none of these signed it; StoreMissing, CorruptBlob.
    """
    if not current().recipes_in_store:
        raise RecipeError(
            f"recipe: {STORE_ROOT}/{name}: this worker takes no recipes from the store",
            why="a recipe is code, and anybody who can write to the store could add one",
            fix=f"start the control worker with {STORE_ROOT} among ENGINEFARM_RECIPE_ROOTS",
        )
    recipe = read(site.store, name)
    trusted = signing.trust()
    if trusted is not None:
        statements.require(recipe, trusted, f"the recipe {STORE_ROOT}/{name}")
    folder = site.cache.root / "recipes" / recipe.sha256()
    if folder.is_dir() and not _unchanged(folder, recipe):
        shutil.rmtree(folder)
    if not folder.is_dir():
        with site.scratch() as scratch:
            for path, ref in recipe.files.items():
                target = scratch / "recipe" / PurePosixPath(path)
                target.parent.mkdir(parents=True, exist_ok=True)
                clone_checked(site.cache.ensure(site.store, ref), target, ref)
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                (scratch / "recipe").rename(folder)
            except OSError:
                if not folder.is_dir():  # else another run was first, with the same bytes
                    raise
    return folder / recipe_file.FILE_NAME


def _unchanged(folder: Path, recipe: StoredRecipe) -> bool:
    """Whether no run of the recipe has changed its files since they were unpacked."""
    return all(
        (path := folder / name).is_file() and sha256_file(path) == ref.digest
        for name, ref in recipe.files.items()
    )


def _key(name: str) -> str:
    return f"{RECIPES}{name}.json"
