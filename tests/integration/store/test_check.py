"""`enginefarm store check`, on a server that passes and on one that does not."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

import pytest

from enginefarm import cli
from enginefarm.errors import StoreError
from enginefarm.store import check, s3
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.s3 import Credentials
from enginefarm.store.weed import free_ports
from tests.farm.weed_server import wait_for


def test_seaweedfs_does_all_that_is_needed(store: EngineStore) -> None:
    results = check.checks(store.objects)
    assert [one for one in results if one.failure] == []
    assert list(store.objects.list("check/")) == []


def test_the_check_says_what_a_lesser_server_lacks(tmp_path: Path) -> None:
    """rclone's S3 server takes conditional writes and ignores the condition."""
    (port,) = free_ports(1)
    (tmp_path / "root").mkdir()
    log = tmp_path / "log"
    rclone = Path(sysconfig.get_path("scripts")) / "rclone"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [
                *(rclone, "serve", "s3", f"--addr=127.0.0.1:{port}", "--auth-key=key,secret"),
                *(f"--config={tmp_path / 'none'}", str(tmp_path / "root")),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        endpoint = f"http://127.0.0.1:{port}"
        wait_for(endpoint, server, log)
        objects = s3.connect(
            "s3://engines", endpoint=endpoint, credentials=Credentials("key", "secret")
        )
        objects.create_bucket()
        missing = [one.needed for one in check.checks(objects) if one.failure]
        with pytest.raises(StoreError, match="ignores the condition"):
            check.require_conditional_writes(objects)
    finally:
        server.kill()
        server.wait()
    assert "If-None-Match: * refuses to overwrite" in missing
    assert "one winner among 8 that create an object at the same time" in missing


def test_the_check_is_a_command(
    store_environment: EngineStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["store", "check"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(check.CHECKS)
    assert all(line.startswith("yes") for line in said)


def test_a_good_server_is_asked_once_before_each_build(store: EngineStore) -> None:
    check.require_conditional_writes(store.objects)
    calls: list[str] = []
    store.objects.client.meta.events.register(
        "before-send.s3.*", lambda event_name, **_: calls.append(event_name)
    )
    check.require_conditional_writes(store.objects)
    assert len(calls) == 1
