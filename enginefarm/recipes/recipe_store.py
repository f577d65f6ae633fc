"""Recipes kept in the store: a recipe's whole folder, by digest, under the recipe's name.

recipes/<name>.json    its files and who signed them; the files are blobs

A recipe names code to run, so anybody who can write `recipes/` can run code on the control
worker. A worker takes none unless its roots name the store (settings.STORE_ROOT); with a
trust key it takes only what one of these keys signed.
"""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from pydantic import Field, field_validator

from enginefarm.digest import sha256_file
from enginefarm.documents.spec import BlobRef
from enginefarm.errors import (
    CorruptBlob,
    NewerVersion,
    RecipeError,
    SignatureRejected,
    StoreMissing,
    did_you_mean,
)
from enginefarm.recipes import file as recipe_file
from enginefarm.recipes.folder import MOST_FILES, SEGMENT, files_to_push, require_complete
from enginefarm.schema import NAME, Frozen, Moment, Name
from enginefarm.settings import STORE_ROOT, current, user
from enginefarm.store import signing
from enginefarm.store.copies import clone_checked
from enginefarm.store.engine_store import READERS, EngineStore
from enginefarm.store.reading import newer, or_left_out, parsed, schema_version
from enginefarm.store.site import Site

RECIPES = "recipes/"
KEY = re.compile(rf"{RECIPES}(?P<name>{NAME.strip('^$')})\.json")
PAYLOAD_TYPE = "application/vnd.enginefarm.recipe+json"
VERSION = 1


class StoredRecipe(Frozen):
    """The files of a recipe's folder, by their path in it. What is signed."""

    schema_version: int = VERSION
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


class PushedRecipe(Frozen):
    """A recipe as it lies in the store."""

    recipe: StoredRecipe
    signatures: tuple[signing.Signature, ...] = ()


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
    signatures: tuple[signing.Signature, ...] = ()
    if signer is not None:
        signed = base64.b64encode(signer.sign(_signed(made))).decode()
        signatures = (signing.Signature(keyid=signer.keyid, sig=signed),)
    before = store.objects.get(_key(made.name))
    body = PushedRecipe(recipe=made, signatures=signatures).canonical_json()
    store.write_document(_key(made.name), body, if_etag=before[1] if before else None)
    return made


def names(store: EngineStore) -> tuple[str, ...]:
    """Every recipe in the store, from one listing; a stray object is passed over."""
    keys = (KEY.fullmatch(info.key) for info in store.objects.list(RECIPES))
    return tuple(key["name"] for key in keys if key is not None)


def readable(store: EngineStore) -> Iterator[PushedRecipe]:
    """Every recipe in the store that this version can read; one that it cannot is left out with
    a note."""
    for name in names(store):
        found = or_left_out(lambda name=name: read(store, name), CorruptBlob, NewerVersion)
        if found is not None:
            yield found


def read(store: EngineStore, name: str) -> PushedRecipe:
    """Raises: StoreMissing, CorruptBlob; NewerVersion."""
    found = store.objects.get(_key(name))
    if found is None:
        known = names(store)
        raise StoreMissing(
            f"recipe: the store has no recipe {name!r}",
            why=f"its recipes are: {', '.join(known)}" if known else "no recipe was pushed yet",
            fix=did_you_mean(name, known) or "enginefarm recipes push FOLDER",
        )
    try:
        pushed = parsed(_key(name), found[0], PushedRecipe)
    except CorruptBlob as error:
        if schema_version(found[0], "recipe") > VERSION:
            raise newer(_key(name), PushedRecipe) from None
        raise CorruptBlob(
            f"store: {_key(name)} is not a recipe", why=error.what, fix="push it again"
        ) from error
    if pushed.recipe.schema_version > VERSION:
        raise newer(_key(name), PushedRecipe)
    if pushed.recipe.name != name:
        raise CorruptBlob(f"store: {_key(name)} holds another recipe, {pushed.recipe.name}")
    return pushed


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
    pushed = read(site.store, name)
    _require_signed(pushed)
    folder = site.cache.root / "recipes" / pushed.recipe.sha256()
    if folder.is_dir() and not _unchanged(folder, pushed.recipe):
        shutil.rmtree(folder)
    if not folder.is_dir():
        with site.scratch() as scratch:
            for path, ref in pushed.recipe.files.items():
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


def _require_signed(pushed: PushedRecipe) -> None:
    trusted = signing.trust()
    if trusted is None:
        return
    with suppress(ValueError):  # a signature that is not even base64
        if trusted.signer_of(pushed.signatures, _signed(pushed.recipe)) is not None:
            return
    by = ", ".join(one.keyid[:12] for one in pushed.signatures)
    raise SignatureRejected(
        f"recipe: {STORE_ROOT}/{pushed.recipe.name} is refused",
        why=f"it is signed by {by}, and the trusted keys are {trusted}"
        if by
        else "it is not signed",
        fix="push it again with ENGINEFARM_SIGNING_KEY set to a key that this worker trusts",
    )


def _signed(recipe: StoredRecipe) -> bytes:
    return signing.pre_authentication(PAYLOAD_TYPE, recipe.canonical_json())


def _key(name: str) -> str:
    return f"{RECIPES}{name}.json"
