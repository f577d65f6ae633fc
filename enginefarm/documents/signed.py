"""Documents that carry their signatures with them, so that no race can part the two."""

from __future__ import annotations

from enginefarm.schema import Frozen


class Signature(Frozen):
    """keyid: sha256 of the public key's 32 bytes. sig: 64 bytes of Ed25519, in base64."""

    keyid: str
    sig: str


class SignedDocument(Frozen):
    """The signatures are over every other field, and over what kind of document it is."""

    signatures: tuple[Signature, ...] = ()
