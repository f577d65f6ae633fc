"""Signatures: Ed25519 over a DSSE envelope of the provenance statement.

The farm signs with ENGINEFARM_SIGNING_KEY (a PEM file) or ENGINEFARM_SIGNING_KEY_PEM (its
text, from a secret). Hosts trust ENGINEFARM_TRUST (PEM files or folders with them, separated as
in PATH) or ENGINEFARM_TRUST_PEM. With either set, a host refuses an unsigned engine before it
reads a byte of it.
Source of the envelope and of the signed bytes: DSSE protocol v1.0.2.
"""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginefarm.documents.manifest import Manifest
from enginefarm.documents.signed import Signature
from enginefarm.errors import SignatureRejected
from enginefarm.schema import Frozen, canonical_json
from enginefarm.store.provenance import is_about, signed_digest, statement

KEY = "ENGINEFARM_SIGNING_KEY"
KEY_PEM = "ENGINEFARM_SIGNING_KEY_PEM"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
MOST_KEY_BYTES = 1 << 20
PEM_BLOCK = re.compile(r"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)


class Envelope(Frozen):
    """DSSE: the statement's bytes in base64, and signatures over them."""

    payloadType: str
    payload: str
    signatures: tuple[Signature, ...]


@dataclass(frozen=True)
class Signer:
    """Signs bytes with a private key, which it never reveals."""

    keyid: str
    sign: Callable[[bytes], bytes]
    public: Any = None

    def __repr__(self) -> str:
        return f"Signer({self.keyid[:12]})"

    def attest(self, manifest: Manifest) -> Envelope:
        """The manifest's provenance, signed."""
        payload = canonical_json(statement(manifest))
        signature = self.sign(pre_authentication(PAYLOAD_TYPE, payload))
        return Envelope(
            payloadType=PAYLOAD_TYPE,
            payload=base64.b64encode(payload).decode(),
            signatures=(Signature(keyid=self.keyid, sig=base64.b64encode(signature).decode()),),
        )


@dataclass(frozen=True)
class Trust:
    """Public keys, by key id."""

    keys: Mapping[str, Any]

    def require(self, manifest: Manifest, envelope: bytes | None) -> str:
        """The id of the trusted key that signed exactly this manifest.

        Raises: SignatureRejected for no signature, another key, another manifest or damage.
        """
        if envelope is None:
            raise _rejected(manifest, "it is not signed")
        try:
            parsed = Envelope.read(envelope)
            payload = base64.b64decode(parsed.payload, validate=True)
            signed = pre_authentication(parsed.payloadType, payload)
            keyid = self.signer_of(parsed.signatures, signed)
            signed_statement = json.loads(payload)
        except (ValueError, RecursionError, binascii.Error) as error:
            raise _rejected(manifest, "its signature is damaged") from error
        if keyid is None:
            by = ", ".join(one.keyid[:12] for one in parsed.signatures) or "nobody"
            raise _rejected(manifest, f"it is signed by {by}, and the trusted keys are {self}")
        if parsed.payloadType != PAYLOAD_TYPE or not is_about(signed_statement, manifest):
            raise _rejected(manifest, "the signature is for another manifest")
        return keyid

    def signer_of(self, signatures: Iterable[Signature], signed: bytes) -> str | None:
        """The id of the first trusted key that made one of these signatures; None if none did.

        Raises: ValueError for a signature that is not base64.
        """
        from cryptography.exceptions import InvalidSignature

        for one in signatures:
            key = self.keys.get(one.keyid)
            if key is None:
                continue
            try:
                key.verify(base64.b64decode(one.sig, validate=True), signed)
            except InvalidSignature:
                continue
            return one.keyid
        return None

    def __str__(self) -> str:
        return ", ".join(keyid[:12] for keyid in self.keys)


def _rejected(manifest: Manifest, why: str) -> SignatureRejected:
    return SignatureRejected(
        f"signature: {manifest.recipe} {manifest.spec.label} "
        f"({manifest.spec_digest[:12]}) is refused",
        why=why,
        fix="sign it with the farm's key (enginefarm sign), or correct ENGINEFARM_TRUST",
    )


def pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """The bytes to sign: DSSE's PAE."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def attestation_key(manifest: Manifest) -> str:
    """The key of the envelope: one for each manifest, so that no race can mix up two."""
    return f"attestations/{manifest.spec_digest}/{signed_digest(manifest)}.json"


def signer(environ: Mapping[str, str] = os.environ) -> Signer | None:
    """The farm's signer; None when no key is set.

    Raises: SignatureRejected when a key is set and cannot be read.
    """
    path, text = environ.get(KEY), environ.get(KEY_PEM)
    if not path and not text:
        return None
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        data = _key_file(Path(path)) if path else (text or "").encode()
        key = load_pem_private_key(data, password=None)
    except (OSError, ValueError, TypeError) as error:
        reason = type(error).__name__  # the message could quote the file
        raise SignatureRejected(f"signing: {KEY} cannot be read", why=reason) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureRejected(f"signing: {KEY} is not an Ed25519 key", fix="enginefarm keygen")
    public = key.public_key()
    return Signer(keyid=key_id(public), sign=key.sign, public=public)


def trust(environ: Mapping[str, str] = os.environ) -> Trust | None:
    """The keys that this host trusts; None when none is configured.

    Raises: SignatureRejected when keys are configured and none can be read: such a host must not
    silently skip the check.
    """
    paths, text = environ.get("ENGINEFARM_TRUST"), environ.get("ENGINEFARM_TRUST_PEM")
    if not paths and not text:
        return None
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    keys: dict[str, Any] = {}
    for block in PEM_BLOCK.findall((text or "") + "\n" + _read_all(paths or "")):
        try:
            key = load_pem_public_key(block.encode())
        except ValueError:
            raise SignatureRejected("trust: ENGINEFARM_TRUST holds a damaged key") from None
        if not isinstance(key, Ed25519PublicKey):
            raise SignatureRejected("trust: ENGINEFARM_TRUST holds a key that is not Ed25519")
        keys[key_id(key)] = key
    if not keys:
        raise SignatureRejected(
            "trust: ENGINEFARM_TRUST is set, but contains no public key",
            fix="name a PEM file that `enginefarm keygen` wrote (….pub.pem)",
        )
    return Trust(keys)


def _read_all(paths: str) -> str:
    texts: list[str] = []
    for name in filter(None, paths.split(os.pathsep)):
        path = Path(name)
        try:
            files = sorted(path.glob("*.pem")) if path.is_dir() else [path]
            texts += [_key_file(file).decode("utf-8", "replace") for file in files]
        except OSError as error:
            raise SignatureRejected(
                f"trust: ENGINEFARM_TRUST names {name}, which cannot be read",
                why=error.strerror or "",
            ) from error
    return "\n".join(texts)


def _key_file(path: Path) -> bytes:
    """The bytes of a small regular file. Reading a device or a pipe might never end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file")
    if path.stat().st_size > MOST_KEY_BYTES:
        raise OSError(errno.EFBIG, f"it has more than {MOST_KEY_BYTES:,} bytes")
    return path.read_bytes()


def key_id(public_key: Any) -> str:
    """sha256 of the 32 bytes of an Ed25519 public key."""
    return hashlib.sha256(public_key.public_bytes_raw()).hexdigest()


def generate(path: Path) -> tuple[Path, str]:
    """Creates a key pair: the private key at `path` (mode 0600), the public key next to it.

    Returns the public key's path and the key id. Raises: SignatureRejected when the file exists.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    key = Ed25519PrivateKey.generate()
    public = path.with_suffix(".pub.pem")
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise SignatureRejected(f"keygen: {path} already exists and was not changed") from None
    with os.fdopen(fd, "wb") as stream:
        stream.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return public, key_id(key.public_key())
