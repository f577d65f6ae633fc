"""Modules next to a recipe's code: `from layers import Block`, with layers.py next to model.py.

A script finds them because Python puts its folder on sys.path. A recipe's file finds them
through the finder here, and sys.path stays as it is. Two recipes may both have a layers.py:
modules that an earlier file found are forgotten before the next file is loaded.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType


class _Finder(MetaPathFinder):
    def __init__(self) -> None:
        self.folder: Path | None = None
        self.allowed: tuple[Path, ...] = ()
        self.found: set[str] = set()

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if self.folder is None or path is not None:
            return None
        spec = find(fullname, self.folder)
        if spec is None or not any(_file(spec).is_relative_to(root) for root in self.allowed):
            return None
        self.found.add(fullname)
        return spec


_FINDER = _Finder()


def find(name: str, folder: Path) -> ModuleSpec | None:
    """The module of that name next to the code; None when there is none.

    The standard library is never hidden, and a folder without `__init__.py` is not a module.
    """
    if name in sys.stdlib_module_names:
        return None
    spec = PathFinder.find_spec(name, [str(folder)])
    return spec if spec is not None and spec.has_location else None


def _file(spec: ModuleSpec) -> Path:
    assert spec.origin is not None, "it has a location"
    return Path(spec.origin).resolve()


def serve(folder: Path, allowed: tuple[Path, ...]) -> None:
    """From now on, imports find the modules in this folder, and those of no other recipe.

    allowed: the folders that code may come from; a link that leads out of them is not followed.
    """
    importlib.invalidate_caches()
    for name in list(sys.modules):
        if name.partition(".")[0] in _FINDER.found:
            del sys.modules[name]
    _FINDER.found.clear()
    _FINDER.folder, _FINDER.allowed = folder, allowed
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
