"""Which names a Python file binds, without running it: a misspelt one is found by `plan`."""

from __future__ import annotations

import ast
import symtable
from collections.abc import Iterator
from importlib.util import decode_source
from pathlib import Path

from enginefarm.errors import SourceError, did_you_mean

CANNOT_TELL = (b"import *", b"__getattr__", b"globals(", b"vars(", b"exec(", b"setattr(")
"""Where a file has one of these, running it may bind more names than it spells."""


def require(file: Path, attribute: str, *, what: str) -> None:
    """what: begins the error, as `source.callable: 'model.py:build'`.

    Raises: SourceError where the file certainly does not bind the first part of the attribute.
    """
    source = file.read_bytes()
    if any(word in source for word in CANNOT_TELL):
        return
    try:
        names = set(
            _bound(symtable.symtable(decode_source(source), str(file), "exec"), module=True)
        )
    except (SyntaxError, ValueError):
        return  # the load says so, with the line
    name = attribute.partition(".")[0]
    if name in names:
        return
    public = sorted(one for one in names if not one.startswith("_"))
    raise SourceError(
        f"{what}: {file.name} has nothing called {name}",
        why=f"it defines {', '.join(public)}" if public else "it defines no names",
        fix=did_you_mean(name, names) or f"use a name that {file.name} defines",
    )


def defined(file: Path) -> tuple[str, ...]:
    """The public functions and classes of a file, in its order; none where it cannot be parsed."""
    try:
        tree = ast.parse(decode_source(file.read_bytes()))
    except (SyntaxError, ValueError):
        return ()
    kinds = (ast.FunctionDef, ast.ClassDef)
    named = [node.name for node in tree.body if isinstance(node, kinds)]
    return tuple(dict.fromkeys(name for name in named if not name.startswith("_")))


def _bound(table: symtable.SymbolTable, *, module: bool) -> Iterator[str]:
    for symbol in table.get_symbols():
        made = symbol.is_assigned() or symbol.is_imported()
        if made and (module or symbol.is_declared_global()):
            yield symbol.get_name()
    for child in table.get_children():
        yield from _bound(child, module=False)
