"""What the embedded server's ports behind its S3 port ask for: tokens over HTTP, a certificate
over gRPC. Without them anybody on this machine could read and write objects there."""

from __future__ import annotations

import hashlib
import ipaddress
import os
from datetime import UTC, datetime
from pathlib import Path

from enginefarm.store.s3 import Credentials

TOKEN_KEYS = (
    "WEED_JWT_SIGNING_KEY",
    "WEED_JWT_SIGNING_READ_KEY",
    "WEED_JWT_FILER_SIGNING_KEY",
    "WEED_JWT_FILER_SIGNING_READ_KEY",
)
PARTS = ("MASTER", "VOLUME", "FILER", "S3", "ADMIN", "WORKER", "CLIENT")
"""The parts of SeaweedFS that serve gRPC or call it."""

CERTIFICATE = "inner.crt"
PRIVATE_KEY = "inner.key"
NO_EXPIRY = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""RFC 5280's date for a certificate that has no end: a wrong clock must not close the store."""


def environment(home: Path, credentials: Credentials) -> dict[str, str]:
    """The variables of a server on that folder. Its certificate is made anew at each start."""
    _make_certificate(home)
    certificate, key = str(home / CERTIFICATE), str(home / PRIVATE_KEY)
    tokens = {
        name: hashlib.sha256(f"{name} {credentials.secret_key}".encode()).hexdigest()
        for name in TOKEN_KEYS
    }
    return {
        **tokens,
        "WEED_GRPC_CA": certificate,
        **{f"WEED_GRPC_{part}_CERT": certificate for part in PARTS},
        **{f"WEED_GRPC_{part}_KEY": key for part in PARTS},
    }


def _make_certificate(home: Path) -> None:
    """One self-signed certificate, which every part shows and which alone every part accepts."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "enginefarm embedded store")])
    loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(2000, 1, 1, tzinfo=UTC))
        .not_valid_after(NO_EXPIRY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([loopback]), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(home / CERTIFICATE, certificate.public_bytes(Encoding.PEM))
    _write(
        home / PRIVATE_KEY,
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def _write(path: Path, content: bytes) -> None:
    """Only the user can read it, from its first byte on."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
