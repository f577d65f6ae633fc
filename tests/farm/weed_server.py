"""A SeaweedFS of a test's own, started with a command line that the test gives."""

from __future__ import annotations

import subprocess
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from enginefarm.store.weed import PORTS, free_ports

WEED = Path(sysconfig.get_path("scripts")) / "weed"
OTHER_PORTS = [name for name in PORTS if not name.startswith("admin.")]
"""`weed server` has no admin interface."""


@contextmanager
def weed_server(arguments: Sequence[str], s3_port: int, log: Path) -> Iterator[str]:
    """The endpoint of `weed ARGUMENTS`, its other ports moved to free ones."""
    moved = [
        f"-{name}={port}"
        for name, port in zip(OTHER_PORTS, free_ports(len(OTHER_PORTS)), strict=True)
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [WEED, *arguments, *moved], stdout=output, stderr=subprocess.STDOUT
        )
    endpoint = f"http://127.0.0.1:{s3_port}"
    try:
        wait_for(f"{endpoint}/healthz", process, log)
        yield endpoint
    finally:
        process.kill()  # its data is thrown away; an orderly end takes half a minute
        process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 90) -> None:
    """Until `url` answers anything but a server's error."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urlopen(url, timeout=2).close()
            return
        except HTTPError as answer:
            if answer.code < 500:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"{url} never answered:\n{log.read_text('utf-8', 'replace')[-3000:]}")
