"""Errors that crossed a process as text: their kind, and the error itself again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from enginefarm.errors import EnginefarmError


def kind_named(name: str) -> type[EnginefarmError] | None:
    """The class of that name, wherever it is defined; None when no such class is loaded."""
    return next((kind for kind in _kinds() if kind.__name__ == name), None)


def kind_of_code(code: int) -> type[EnginefarmError]:
    """The class with that exit code; EnginefarmError when no class that is loaded has it."""
    return next((kind for kind in _kinds() if kind.exit_code == code), EnginefarmError)


def _kinds() -> Iterator[type[EnginefarmError]]:
    """Every class of error that is loaded, the general ones before their subclasses."""
    waiting: list[type[EnginefarmError]] = [EnginefarmError]
    for kind in waiting:
        yield kind
        waiting += kind.__subclasses__()


def of_fields(fields: Mapping[str, str], fallback: type[EnginefarmError]) -> EnginefarmError:
    """The error that another process wrote down; of kind `fallback` where it names no other.

    A kind with arguments of its own comes as `fallback` too, with the same words.
    """
    what, why, fix = (fields.get(name, "") for name in ("what", "why", "fix"))
    kind = kind_named(fields.get("kind", "")) or fallback
    if kind.__init__ is not EnginefarmError.__init__:
        kind = fallback
    return kind(what, why=why, fix=fix)


def of_text(name: str, text: str, fallback: type[EnginefarmError]) -> EnginefarmError:
    """The error that was shown as `text` (its `str`), by the class's name."""
    what, *rest = re.split(r"\n  (why|fix): ", text)
    said = dict(zip(rest[::2], rest[1::2], strict=False))
    return of_fields({"kind": name, "what": what, **said}, fallback)
