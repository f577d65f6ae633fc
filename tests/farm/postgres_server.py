"""A real PostgreSQL server on a free loopback port, for tests and benchmarks. Run by `nobody`."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USER = "enginefarm"


def installed() -> Path | None:
    """The folder of Debian's binaries; None where PostgreSQL is not installed."""
    candidates = [Path("/usr/local/bin"), *sorted(Path("/usr/lib/postgresql").glob("*/bin"))]
    found = shutil.which("initdb")
    candidates += [Path(found).resolve().parent] if found else []
    return next((folder for folder in candidates if (folder / "initdb").exists()), None)


@contextmanager
def running() -> Iterator[str]:
    """Its URL, password included, while the block runs; the data goes with it."""
    binaries = installed()
    assert binaries is not None, "PostgreSQL is not installed: apt-get install postgresql"
    root = Path(tempfile.mkdtemp(prefix="farm-postgres-"))
    data, password = root / "data", secrets.token_urlsafe(16)
    (root / "password").write_text(password)
    # PostgreSQL refuses to run as root.
    prefix: list[str] = []
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        for path in (root, root / "password"):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
        prefix = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}"]
        prefix.append("--clear-groups")
    subprocess.run(
        [
            *prefix,
            str(binaries / "initdb"),
            f"--pgdata={data}",
            f"--username={USER}",
            f"--pwfile={root / 'password'}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--no-sync",
        ],
        check=True,
        capture_output=True,
        cwd=root,
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (root / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                *prefix,
                *(str(binaries / "postgres"), "-D", str(data), "-p", str(port), "-k", str(root)),
                *("-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"),
            ],
            stdout=log,
            stderr=log,
            cwd=root,
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert server.poll() is None, (root / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield f"postgresql://{USER}:{password}@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(root, ignore_errors=True)
