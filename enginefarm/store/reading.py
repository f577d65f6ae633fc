"""Parses documents of the store: those of newer versions, and damaged ones, become errors."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from pydantic import ValidationError

from enginefarm.errors import CorruptBlob, EnginefarmError, NewerVersion
from enginefarm.schema import Frozen

LOG = logging.getLogger(__name__)
Model = TypeVar("Model", bound=Frozen)
Found = TypeVar("Found")

MEND = "enginefarm fsck --repair removes it; then build it again"


def parsed(key: str, body: bytes, model: type[Model], fix: str = MEND) -> Model:
    """A document of the store. Fields of a later version are kept, and no error.

    fix: how to repair a damaged one.
    Raises: NewerVersion for a later schema; CorruptBlob for any other content.
    """
    known = model.model_fields.get("schema_version")
    try:
        found = model.read(body)
        said: Any = dict(found).get("schema_version")
    except ValidationError as error:
        if known is not None and schema_version(body) > known.default:
            raise newer(key, model) from None
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise CorruptBlob(
            f"store: {key} is not a valid {model.__name__}: {field}: {first['msg']}", fix=fix
        ) from None
    if known is not None and said > known.default:
        raise newer(key, model)
    return found


def or_left_out(
    read: Callable[[], Found],
    *kinds: type[EnginefarmError],
) -> Found | None:
    """What `read` returns; None, with a note in the log, if it raises one of these kinds: one
    document that this version cannot read does not hide the others."""
    try:
        return read()
    except kinds as error:
        LOG.warning("note: left out: %s", error.what)
        return None


def newer(key: str, model: type[Frozen]) -> NewerVersion:
    return NewerVersion(
        f"store: {key} is a {model.__name__} of a newer enginefarm",
        fix="update enginefarm on this machine",
    )


def schema_version(body: bytes, *path: str) -> int:
    """The schema version in a document that could not be parsed; 0 if it has none.

    path: the keys that lead to the part whose version is asked for.
    """
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        found: Any = json.loads(body)
        for name in (*path, "schema_version"):
            found = found[name]
        if isinstance(found, int):
            return found
    return 0
