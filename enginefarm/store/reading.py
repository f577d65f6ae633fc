"""Reads documents of the store. A damaged one, or one of a newer version, becomes an error."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from enginefarm.errors import CorruptBlob, EnginefarmError, NewerVersion
from enginefarm.schema import Frozen

if TYPE_CHECKING:
    from enginefarm.store.s3 import ObjectStore

LOG = logging.getLogger(__name__)
Model = TypeVar("Model", bound=Frozen)
Found = TypeVar("Found")

REPAIR = "enginefarm fsck --repair removes it; then build it again"


def parsed(key: str, body: bytes, model: type[Model], fix: str = REPAIR) -> Model:
    """The body of a document as its model. Fields that a later version added are kept.

    fix: how to repair a damaged document.
    Raises: NewerVersion for a later schema; CorruptBlob for any other content.
    """
    known = model.model_fields.get("schema_version")
    try:
        found = model.read(body)
    except ValidationError as error:
        if known is not None and _schema_version(body) > known.default:
            raise _newer(key, model) from None
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise CorruptBlob(
            f"store: {key} is not a valid {model.__name__}: {field}: {first['msg']}", fix=fix
        ) from None
    version: Any = dict(found).get("schema_version")
    if known is not None and version > known.default:
        raise _newer(key, model)
    return found


def read(objects: ObjectStore, key: str, model: type[Model], fix: str = REPAIR) -> Model | None:
    """The document under a key; None when it does not exist. Raises: as parsed()."""
    found = objects.get(key)
    return None if found is None else parsed(key, found[0], model, fix)


def or_left_out(read: Callable[[], Found], *kinds: type[EnginefarmError]) -> Found | None:
    """What `read` returns, or None with a note in the log if it raises one of these kinds, so that
    one document that this version cannot read does not hide the others."""
    try:
        return read()
    except kinds as error:
        LOG.warning("note: left out: %s", error.what)
        return None


def _newer(key: str, model: type[Frozen]) -> NewerVersion:
    return NewerVersion(
        f"store: {key} is a {model.__name__} of a newer enginefarm",
        fix="update enginefarm on this machine",
    )


def _schema_version(body: bytes) -> int:
    """The schema version in a document that could not be parsed; 0 if it has none."""
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        found: Any = json.loads(body)["schema_version"]
        if isinstance(found, int):
            return found
    return 0
