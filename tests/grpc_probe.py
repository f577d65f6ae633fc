"""Whether a gRPC port serves somebody: by the first frame of HTTP/2, without a gRPC library."""

from __future__ import annotations

import socket
import ssl
from contextlib import closing
from pathlib import Path

from enginefarm.store import inner_ports

GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
SETTINGS = 4
"""The kind of the frame that every server sends first to a client that it serves."""


def answers(port: int, tls: ssl.SSLContext | None) -> bool:
    with closing(socket.create_connection(("127.0.0.1", port), timeout=10)) as plain:
        try:
            connection = tls.wrap_socket(plain, server_hostname="127.0.0.1") if tls else plain
            connection.sendall(GREETING)
            return connection.recv(9)[3:4] == bytes([SETTINGS])
        except (ssl.SSLError, ConnectionError):
            return False


def with_certificate(folder: Path | None) -> ssl.SSLContext:
    """A client that shows the certificate of this folder, or none, and believes every server."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.set_alpn_protocols(["h2"])
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_NONE
    if folder is not None:
        tls.load_cert_chain(folder / inner_ports.CERTIFICATE, folder / inner_ports.PRIVATE_KEY)
    return tls
