"""The keys of an embedded server: its S3 key, and those that protect SeaweedFS's other ports.

HTTP ports require tokens, gRPC ports a certificate. Without them, anybody who reaches the ports
could list and delete objects, or create new keys.
`python -m enginefarm.store.inner_ports FOLDER COMMAND...` creates a certificate in FOLDER and runs
a server with it (the one of Compose).
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import secrets
import sys
from datetime import UTC, datetime
from pathlib import Path

from enginefarm.store.client import Credentials
from enginefarm.store.disk import write_atomically

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
"""RFC 5280's date for a certificate without an end: a wrong clock must not close the store."""


def credentials_of(home: Path) -> Credentials:
    """The folder's own key, created on first use; only the user can read it."""
    path = home / "credentials.json"
    try:
        stored = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        stored = {"access_key": secrets.token_hex(10), "secret_key": secrets.token_urlsafe(30)}
        write_atomically(path, json.dumps(stored).encode(), 0o600)
    return Credentials(stored["access_key"], stored["secret_key"])


def tokens(credentials: Credentials) -> dict[str, str]:
    """The variables that protect a server's inner HTTP ports; the same at each start."""
    return {
        name: hashlib.sha256(f"{name} {credentials.secret_key}".encode()).hexdigest()
        for name in TOKEN_KEYS
    }


def certificate(folder: Path) -> dict[str, str]:
    """The variables that protect a server's gRPC ports, with a new certificate each time."""
    _make_certificate(folder)
    public, private = str(folder / CERTIFICATE), str(folder / PRIVATE_KEY)
    return {
        "WEED_GRPC_CA": public,
        **{f"WEED_GRPC_{part}_CERT": public for part in PARTS},
        **{f"WEED_GRPC_{part}_KEY": private for part in PARTS},
    }


def main() -> None:
    folder, *command = sys.argv[1:]
    environment = {**os.environ, **certificate(Path(folder))}
    os.execvpe(command[0], command, environment)  # noqa: S606 - the command comes from our Compose file


def _make_certificate(folder: Path) -> None:
    """A self-signed certificate. Every part presents it, and accepts no other."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "enginefarm embedded store")])
    loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    signed = (
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
    write_atomically(folder / CERTIFICATE, signed.public_bytes(Encoding.PEM), 0o600)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_atomically(folder / PRIVATE_KEY, private, 0o600)


if __name__ == "__main__":
    main()
