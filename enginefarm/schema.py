"""The base of every model that is written down: frozen, closed, and canonical in JSON.

Closed to who writes: a misspelt field is an error. Open to who reads what another version
wrote (`read`): fields that are not known here are kept as they came, so that a document's
digests and signatures hold, and it is written back whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any, Self, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationError,
    model_serializer,
)

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A sha256, in lower-case hexadecimal."""

NAME = r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$"

Name = Annotated[str, StringConstraints(pattern=NAME)]
"""A name that is also safe as one segment of an S3 key and of a file path."""


FIRST_YEAR, LAST_YEAR = 1970, 9000
INTEGER = 2**63
"""Sizes and counts are below it: larger ones fit into no file, and neither into a float."""


def _placed(moment: datetime) -> datetime:
    if moment.utcoffset() is None:
        raise ValueError("a time without its zone cannot be compared with others")
    if not FIRST_YEAR <= moment.year <= LAST_YEAR:
        raise ValueError(f"its year is not between {FIRST_YEAR} and {LAST_YEAR}")
    return moment


Moment = Annotated[datetime, AfterValidator(_placed)]
"""A date and time with its zone, which every one of ours can be compared with and shown."""


class Frozen(BaseModel):
    """A value. Unknown fields are refused, and nothing changes after validation.

    A model's validator is made when it is first used: most commands and children import many
    models and use few.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    @classmethod
    def read(cls, data: bytes | str) -> Self:
        """The value of a JSON document; fields that this version does not know are kept.

        Raises: pydantic.ValidationError, also for an integer of more than 64 bits.
        """
        found = cls.model_validate_json(data, extra="allow")
        for place in _too_large(found, ()):
            raise ValidationError.from_exception_data(
                cls.__name__, [{"type": "int_parsing_size", "loc": place, "input": "a number"}]
            )
        return found

    @model_serializer(mode="wrap")
    def _as_written(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Every field, and those of another version as they were read."""
        written: dict[str, Any] = serialize(self)
        return {**written, **(self.model_extra or {})}

    def unknown_fields(self) -> tuple[str, ...]:
        """Paths of the fields, at any depth, that this version does not know: `build.speed`."""
        return tuple(_unknown(self, ""))

    def canonical_json(self) -> bytes:
        """One byte string for one value: sorted keys, no spaces, UTF-8."""
        return canonical_json(self.model_dump(mode="json"))

    def sha256(self) -> str:
        """sha256 of canonical_json()."""
        return hashlib.sha256(self.canonical_json()).hexdigest()


def _too_large(value: Any, place: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    """Where integers stand that have more than 64 bits."""
    if isinstance(value, int):
        if not -INTEGER <= value < INTEGER:
            yield place
    elif isinstance(value, Frozen):
        for name, item in value:
            yield from _too_large(item, (*place, name))
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(cast("tuple[Any, ...]", value)):
            yield from _too_large(item, (*place, index))
    elif isinstance(value, dict):
        for key, item in cast("dict[Any, Any]", value).items():
            yield from _too_large(item, (*place, str(key)))


def _unknown(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, Frozen):
        yield from (f"{path}{name}" for name in value.model_extra or ())
        for name in type(value).model_fields:
            yield from _unknown(getattr(value, name), f"{path}{name}.")
    elif isinstance(value, (tuple, list)):
        for item in cast("tuple[Any, ...]", value):
            yield from _unknown(item, path)
    elif isinstance(value, dict):
        for key, item in cast("dict[str, Any]", value).items():
            yield from _unknown(item, f"{path}{key}.")


def canonical_json(value: Any) -> bytes:
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


LONGEST_NAME, LONGEST_PATH = 255, 4000
"""Bytes that a Linux file system allows, less a folder in front of the path."""


def can_be_a_file(path: str) -> bool:
    """Whether a file could have this path. The functions of `pathlib` raise for any other."""
    written = path.encode("utf-8", "surrogatepass")
    return (
        b"\0" not in written
        and len(written) <= LONGEST_PATH
        and max(map(len, written.split(b"/"))) <= LONGEST_NAME
    )


def _nameable(path: str) -> str:
    if not can_be_a_file(path):
        raise ValueError(
            f"no file can have this name: a name has at most {LONGEST_NAME} bytes, none of them 0"
        )
    return path


FilePath = Annotated[str, AfterValidator(_nameable)]
"""The path of a file or folder. Whether it exists is looked at when it is read."""

ImportPath = Annotated[
    str,
    StringConstraints(pattern=r"^[\w.-][\w./-]*:[A-Za-z_][\w.]*$", max_length=300),
    AfterValidator(_nameable),
]
"""`file.py:name`, the file relative to the recipe, or `package.module:name`."""
