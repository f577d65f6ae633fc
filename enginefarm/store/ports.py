"""Loopback ports of the embedded server, which stay the same from one start to the next."""

from __future__ import annotations

import errno
import json
import os
import random
import socket
import stat
from contextlib import ExitStack, suppress
from pathlib import Path

SOCKETS = Path("/tmp")  # noqa: S108 # SeaweedFS's choice
LOWEST_PORT, HIGHEST_PORT = 10_000, (1 << 16) - 10_001
"""Well-known services use lower ports; SeaweedFS adds 10,000 to some ports for its own gRPC."""

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")

PORTS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "admin.port",
    "admin.port.grpc",
    "s3.port.grpc",
)


def ports_of(home: Path) -> list[int]:
    """The folder's ports while they are free, because SeaweedFS stores its master port there; new
    ports if somebody else uses one of them, or the path of one of their sockets."""
    kept = home / "ports.json"
    try:
        ports = _bound([int(port) for port in json.loads(kept.read_text("utf-8"))])
    except (OSError, ValueError):
        ports = free_ports(len(PORTS) + 1)
    while any(_blocked(path) for path in sockets_of(ports)):
        ports = free_ports(len(PORTS) + 1)
    kept.write_text(json.dumps(ports), "utf-8")
    return ports


def free_ports(count: int) -> list[int]:
    """`count` distinct ports that nobody listens on, outside the range of outgoing connections.

    The kernel chooses ports from that range, so that it could give such a port to any client on the
    machine before the server uses it.
    """
    first, beyond = _range()
    with ExitStack() as stack:
        ports: list[int] = []
        # Each port is drawn once: SO_REUSEADDR lets the same port be bound twice.
        for port in random.sample(range(first, beyond), beyond - first):
            with suppress(OSError):
                ports.append(_bind(stack, port))
            if len(ports) == count:
                return ports
    raise OSError(errno.EADDRINUSE, f"fewer than {count} ports are free on 127.0.0.1")


def sockets_of(ports: list[int]) -> list[Path]:
    """Where SeaweedFS puts a socket for each gRPC port. No option changes these paths."""
    return [
        SOCKETS / f"seaweedfs-{name.partition('.')[0]}-grpc-{port}.sock"
        for name, port in zip(PORTS, ports[1:], strict=True)
        if "grpc" in name
    ]


def _blocked(path: Path) -> bool:
    """Whether the path holds something that SeaweedFS cannot replace with its socket."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid()


def _range() -> tuple[int, int]:
    """The larger part of our ports outside the kernel's range; all of them if it is too small."""
    try:
        low, high = map(int, EPHEMERAL.read_text("utf-8").split())
    except (OSError, ValueError):
        low, high = 32_768, 60_999
    outside = [(LOWEST_PORT, min(low, HIGHEST_PORT + 1)), (high + 1, HIGHEST_PORT + 1)]
    first, beyond = max(outside, key=lambda part: part[1] - part[0])
    return (first, beyond) if beyond - first >= 1_000 else (LOWEST_PORT, HIGHEST_PORT + 1)


def _bound(ports: list[int]) -> list[int]:
    """Returns the ports. Raises: OSError when one is taken."""
    with ExitStack() as stack:
        return [_bind(stack, port) for port in ports]


def _bind(stack: ExitStack, port: int) -> int:
    bound = stack.enter_context(socket.socket())
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return port
