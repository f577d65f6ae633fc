"""The base of every model that is written down: frozen, closed, and canonical in JSON."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""A sha256, in lower-case hexadecimal."""

NAME = r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$"

Name = Annotated[str, StringConstraints(pattern=NAME)]
"""A name that is also safe as one segment of an S3 key and of a file path."""


class Frozen(BaseModel):
    """A value. Unknown fields are refused, and nothing changes after validation."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def canonical_json(self) -> bytes:
        """One byte string for one value: sorted keys, no spaces, UTF-8."""
        return canonical_json(self.model_dump(mode="json"))

    def sha256(self) -> str:
        """sha256 of canonical_json()."""
        return hashlib.sha256(self.canonical_json()).hexdigest()


def canonical_json(value: Any) -> bytes:
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()
