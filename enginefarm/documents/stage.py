"""What the store records in addition to manifests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, JsonValue

from enginefarm.documents.signed import SignedDocument
from enginefarm.documents.spec import BlobRef
from enginefarm.schema import Digest, Frozen, Moment, Name


class StageOutput(Frozen):
    """What the work of a stage made: files by name, and figures."""

    files: dict[str, Path] = Field(default_factory=dict)
    values: dict[str, Any] = Field(default_factory=dict, description="Of JSON's types.")


class StageRecord(SignedDocument):
    """A step that was done once: what went in (`key`) and what came out.

    The key is the sha256 of everything that decides the outputs. Signed by a builder that has
    a signing key, because another one would sign an engine on the word of it.
    """

    stage: Name
    key: Digest
    outputs: dict[str, BlobRef] = Field(default_factory=dict)
    values: dict[str, JsonValue] = Field(default_factory=dict)
    seconds: float = Field(ge=0)
    created_at: Moment
