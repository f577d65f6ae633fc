"""A second real S3 server besides SeaweedFS: versitygw, a Go program on a folder.

Where it is: VERSITYGW names it, or it is on the PATH, or it is built by `go install` where Go is
there and ENGINEFARM_GO_INSTALL=1 says that the two to four minutes may be spent.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from enginefarm.store.s3 import Credentials
from enginefarm.store.weed import free_ports
from tests.farm.weed_server import wait_for

MODULE = "github.com/versity/versitygw/cmd/versitygw@latest"
KEY = Credentials("second-server", "second-server-secret")


def versitygw(folder: Path) -> Path:
    """The program; skips the test, and says why, where it cannot be had."""
    found = os.environ.get("VERSITYGW") or shutil.which("versitygw")
    if found:
        return Path(found)
    go = shutil.which("go")
    if go is None:
        pytest.skip("DID NOT RUN: versitygw is not installed, and there is no Go to build it")
    if os.environ.get("ENGINEFARM_GO_INSTALL") != "1":
        pytest.skip(
            f"DID NOT RUN: versitygw is not installed: go install {MODULE} and set VERSITYGW, or "
            "set ENGINEFARM_GO_INSTALL=1"
        )
    subprocess.run([go, "install", MODULE], env={**os.environ, "GOBIN": str(folder)}, check=True)
    return folder / "versitygw"


@contextmanager
def second_server(folder: Path) -> Iterator[str]:
    """The endpoint of a versitygw of its own, on an empty folder."""
    program = versitygw(folder)
    (data := folder / "data").mkdir()
    (port,) = free_ports(1)
    environment = {
        **os.environ,
        "ROOT_ACCESS_KEY": KEY.access_key,
        "ROOT_SECRET_KEY": KEY.secret_key,
    }
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(program), "--port", f"127.0.0.1:{port}", "posix", str(data)],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    endpoint = f"http://127.0.0.1:{port}"
    try:
        wait_for(endpoint, process, log)
        yield endpoint
    finally:
        process.kill()
        process.wait()
