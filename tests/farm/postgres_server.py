"""A real PostgreSQL server on a free loopback port, for tests and benchmarks. Run by `nobody`."""

from __future__ import annotations

import fcntl
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from enginefarm.store.weed import free_ports

USER = "enginefarm"


def installed() -> Path | None:
    """The folder of Debian's binaries; None where PostgreSQL is not installed."""
    candidates = [Path("/usr/local/bin"), *sorted(Path("/usr/lib/postgresql").glob("*/bin"))]
    found = shutil.which("initdb")
    candidates += [Path(found).resolve().parent] if found else []
    return next((folder for folder in candidates if (folder / "initdb").exists()), None)


@contextmanager
def running(template: Path | None = None) -> Iterator[str]:
    """Its URL, password included, while the block runs; the data goes with it.

    template: what `made_once` has returned, to begin with its data.
    """
    root = Path(tempfile.mkdtemp(prefix="farm-postgres-"))
    try:
        if template is None:
            _create(root)
        else:
            shutil.copyfile(template / "password", root / "password")
            # Owners too: PostgreSQL reads the folder of its own user alone.
            subprocess.run(["cp", "-a", template / "data", root], check=True)
            _give(root)
        with _serving(root) as url:
            yield url
    finally:
        shutil.rmtree(root, ignore_errors=True)


def made_once(folder: Path, fill: Callable[[str], None]) -> Path:
    """A stopped server's data as `fill` has left it: made by the first process that asks.

    fill: takes the URL of the server. folder: where the data stays, for every process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / "made"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            root = Path(tempfile.mkdtemp(prefix="farm-postgres-"))
            try:
                _create(root)
                with _serving(root) as url:
                    fill(url)
                subprocess.run(["cp", "-a", root, made.with_suffix(".new")], check=True)
                made.with_suffix(".new").rename(made)
            finally:
                shutil.rmtree(root, ignore_errors=True)
    return made


def _as_another() -> list[str]:
    """What leads a command: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return []
    nobody = pwd.getpwnam("nobody")
    user = [f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}"]
    return ["setpriv", *user, "--clear-groups"]


def _give(*paths: Path) -> None:
    """To the user that PostgreSQL runs as."""
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        for path in paths:
            os.chown(path, nobody.pw_uid, nobody.pw_gid)


def _binaries() -> Path:
    found = installed()
    assert found is not None, "PostgreSQL is not installed: apt-get install postgresql"
    return found


def _create(root: Path) -> None:
    (root / "password").write_text(secrets.token_urlsafe(16))
    _give(root, root / "password")
    subprocess.run(
        [
            *_as_another(),
            str(_binaries() / "initdb"),
            f"--pgdata={root / 'data'}",
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


@contextmanager
def _serving(root: Path) -> Iterator[str]:
    (port,) = free_ports(1)
    with (root / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                *_as_another(),
                *(str(_binaries() / "postgres"), "-D", str(root / "data"), "-p", str(port)),
                *("-k", str(root), "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"),
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
        password = (root / "password").read_text()
        yield f"postgresql://{USER}:{password}@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait(30)
