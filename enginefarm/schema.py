"""The base of every model that is written down: frozen, closed, and canonical in JSON.

Closed to who writes: a misspelt field is an error. Open to who reads what another version
wrote (`read`): fields that are not known here are kept as they came, so that a document's
digests and signatures hold, and it is written back whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Annotated, Any, Self, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
)

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A sha256, in lower-case hexadecimal."""

NAME = r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$"

Name = Annotated[str, StringConstraints(pattern=NAME)]
"""A name that is also safe as one segment of an S3 key and of a file path."""


class Frozen(BaseModel):
    """A value. Unknown fields are refused, and nothing changes after validation."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def read(cls, data: bytes | str) -> Self:
        """The value of a JSON document; fields that this version does not know are kept.

        Raises: pydantic.ValidationError.
        """
        return cls.model_validate_json(data, extra="allow")

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


ImportPath = Annotated[
    str, StringConstraints(pattern=r"^[\w.-][\w./-]*:[A-Za-z_][\w.]*$", max_length=300)
]
"""`file.py:name`, the file relative to the recipe, or `package.module:name`."""
