"""Loopback ports of the embedded server, which stay the same from run to run."""

from __future__ import annotations

import json
import os
import socket
import stat
from contextlib import ExitStack
from pathlib import Path

SOCKETS = Path("/tmp")  # noqa: S108 # SeaweedFS's choice
HIGHEST_PORT = (1 << 16) - 10_001
"""SeaweedFS adds 10,000 to some ports for its own gRPC."""

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
    """The folder's ports, while they are free: SeaweedFS keeps a folder a master port. Others
    where somebody else has one of them, or the name of one of their sockets."""
    kept = home / "ports.json"
    try:
        ports = _bound([int(port) for port in json.loads(kept.read_text("utf-8"))])
    except (OSError, ValueError):
        ports = _bound([0] * (len(PORTS) + 1))
    while any(_is_anothers(path) for path in sockets_of(ports)):
        ports = _bound([0] * (len(PORTS) + 1))
    kept.write_text(json.dumps(ports), "utf-8")
    return ports


def sockets_of(ports: list[int]) -> list[Path]:
    """Where SeaweedFS puts a socket for each of its gRPC ports; nothing sets another place."""
    return [
        SOCKETS / f"seaweedfs-{name.partition('.')[0]}-grpc-{port}.sock"
        for name, port in zip(PORTS, ports[1:], strict=True)
        if "grpc" in name
    ]


def _is_anothers(path: Path) -> bool:
    """Whether that path holds something that SeaweedFS cannot replace with its socket."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid()


def _bound(wanted: list[int]) -> list[int]:
    """Distinct free ports; 0 takes any. Raises OSError when one is taken."""
    with ExitStack() as stack:
        ports: list[int] = []
        for port in wanted:
            while True:
                one = stack.enter_context(socket.socket())
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.bind(("127.0.0.1", port))
                number = one.getsockname()[1]
                if number <= HIGHEST_PORT:
                    break
            ports.append(number)
        return ports
