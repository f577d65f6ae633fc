"""`file.py:name` and `package.module:name`: loading what they name, and its fingerprint.

The fingerprint is static: it parses and never runs the code, so that planning a build
does not import torch. It covers the file, every local module that it imports (followed
transitively) and `name==version` of every distribution imported on the way.
"""

from __future__ import annotations

import ast
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from enginefarm.digest import sha256_bytes
from enginefarm.errors import EnginefarmError, SourceError
from enginefarm.recipes import bound_names, siblings
from enginefarm.schema import canonical_json
from enginefarm.settings import current

OTHER_NAMES = {
    "PIL": "pillow",
    "cv2": "opencv-python",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""Modules whose distribution is called otherwise. Only a short cut: without it the metadata
of every package installed is read, a quarter of a second."""


def load(path: str, root: Path, *, field: str, error: type[EnginefarmError] = SourceError) -> Any:
    """The object that the import path names. A `file.py` is taken relative to `root`.

    A file is loaded under a private module name and `sys.path` stays as it is: two recipes
    may both have a `model.py`.

    Raises: `error`, naming `field`, when the file, module or attribute is not there, the file
    is outside the recipe's folder and the recipe roots, or importing it fails.
    """
    where, _, attribute = path.partition(":")
    try:
        module = (
            _load_file(_inside(root, where, field, error), _allowed(root))
            if where.endswith(".py")
            else importlib.import_module(where)
        )
        found: Any = module
        for part in attribute.split("."):
            found = getattr(found, part)
    except EnginefarmError:
        raise
    except FileNotFoundError:
        raise error(
            f"{field}: {path!r}: the file does not exist",
            why=f"looked for {root / where}",
            fix="the path is relative to the recipe's folder",
        ) from None
    except (ImportError, AttributeError) as cause:
        raise error(
            f"{field}: {path!r} cannot be imported",
            why=f"{type(cause).__name__}: {cause}",
            fix="name `file.py:attribute`, relative to the recipe, or `package.module:attribute` "
            "of an installed package; modules next to the file are imported by name: "
            "`from layers import Block`",
        ) from cause
    except Exception as cause:
        raise error(
            f"{field}: importing {path!r} failed", why=f"{type(cause).__name__}: {cause}"
        ) from cause
    return found


def _inside(root: Path, where: str, field: str, error: type[EnginefarmError]) -> Path:
    """The file, when it is in the recipe's folder or in a recipe root. Links are followed first.

    Only people who can put a file there can run code on the farm (docs/security.md).
    """
    file = (root / where).resolve()
    allowed = _allowed(root)
    if not any(file.is_relative_to(folder) for folder in allowed):
        raise error(
            f"{field}: {where!r} is outside the folders that code may come from",
            why=f"the allowed folders are {', '.join(map(str, allowed))}",
            fix="move the file into the recipe's folder, or name its folder in "
            "ENGINEFARM_RECIPE_ROOTS",
        )
    return file


def _allowed(root: Path) -> tuple[Path, ...]:
    return (root.resolve(), *(current().recipe_roots or ()))


def _load_file(file: Path, allowed: tuple[Path, ...]) -> Any:
    file = file.resolve()
    if not file.is_file():
        raise FileNotFoundError(file)
    name = f"_enginefarm_{sha256_bytes(str(file).encode())[:16]}_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None, file
    assert spec.loader is not None, file
    module = importlib.util.module_from_spec(spec)
    siblings.serve(file.parent, allowed)
    sys.modules[name] = module  # dataclasses and pickling look a class's module up here
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def fingerprint(path: str, root: Path, *, field: str) -> dict[str, str]:
    """What the code behind an import path depends on: module or distribution -> digest
    or version. Nothing is imported.

    Raises: SourceError when the file or the module is not there.
    """
    return _follow(path, root, field)[0]


def local_modules(path: str, root: Path, *, field: str) -> dict[str, Path]:
    """The files of `fingerprint`'s modules that belong to no installed distribution."""
    return _follow(path, root, field)[1]


Dependencies = tuple[dict[str, str], dict[str, Path]]


def _follow(path: str, root: Path, field: str) -> Dependencies:
    where, _, attribute = path.partition(":")
    if where.endswith(".py"):
        file = _inside(root, where, field, SourceError)
        if not file.is_file():
            raise SourceError(
                f"{field}: {path!r}: the file does not exist",
                why=f"looked for {file}",
                fix="the path is relative to the recipe's folder",
            )
        bound_names.require(file, attribute, what=f"{field}: {path!r}")
        return _closure({"file": file}, file.parent)
    top = where.partition(".")[0]
    distribution = _distribution(top)
    if distribution is not None:
        return {where: distribution}, {}
    files = dict(_local_files(where))
    if not files:
        raise SourceError(
            f"{field}: {path!r}: there is no module {top!r}",
            fix="install the package that has it, or name a file: `file.py:attribute`",
        )
    return _closure(files, None)


def digest(parts: dict[str, Any]) -> str:
    """One sha256 for a fingerprint's parts."""
    return sha256_bytes(canonical_json(parts))


def _closure(files: dict[str, Path], folder: Path | None) -> Dependencies:
    """Follows imports from these files: `module name -> sha256 or name==version`, and the files.

    folder: where the modules next to the code are, which come before those of sys.path.
    """
    importlib.invalidate_caches()
    seen: dict[str, str] = {}
    followed: dict[str, Path] = {}
    waiting = dict(files)
    while waiting:
        name, file = waiting.popitem()
        source = file.read_bytes()
        seen[name] = sha256_bytes(source)
        followed[name] = file
        for module in sorted(set(_imports(source, name))):
            if module in seen or module in waiting:
                continue
            top = module.partition(".")[0]
            if top in sys.stdlib_module_names or top == "__future__":
                continue
            beside = folder if folder and siblings.find(top, folder) else None
            distribution = None if beside else _distribution(top)
            if distribution is not None:
                seen[top] = distribution
            else:
                found = _local_files(module, beside)
                waiting.update({key: value for key, value in found if key not in seen})
    return seen, followed


def _imports(source: bytes, name: str) -> Iterator[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return  # the load will say so, with the line
    package = name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]).strip(".")
            if base:
                yield base
                # `from package import module` may name a module
                yield from (f"{base}.{alias.name}" for alias in node.names)


def _local_files(module: str, beside: Path | None = None) -> Iterator[tuple[str, Path]]:
    """The module's file and its parent packages' `__init__.py`, where they are files."""
    parts = module.split(".")
    folder: list[str] | None = [str(beside)] if beside else None
    for depth, part in enumerate(parts, 1):
        spec = importlib.machinery.PathFinder.find_spec(part, folder)
        if spec is None:
            return
        if spec.origin is not None and spec.origin.endswith(".py"):
            yield ".".join(parts[:depth]), Path(spec.origin)
        if spec.submodule_search_locations is None:
            return
        folder = list(spec.submodule_search_locations)


@cache
def _distribution(top: str) -> str | None:
    """`name==version` of the installed distribution that has this top-level module."""
    spec = importlib.machinery.PathFinder.find_spec(top)
    origins = [] if spec is None else [spec.origin or "", *(spec.submodule_search_locations or [])]
    if not any("site-packages" in origin or "dist-packages" in origin for origin in origins):
        return None  # local code, also when a project is installed in place
    for guess in (OTHER_NAMES.get(top, top), top.replace("_", "-")):
        try:
            return f"{guess}=={importlib.metadata.version(guess)}".lower()
        except importlib.metadata.PackageNotFoundError:
            continue
    names = sorted(set(_packages().get(top, ())))
    return ",".join(f"{name}=={importlib.metadata.version(name)}" for name in names).lower() or None


@cache
def _packages() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())
