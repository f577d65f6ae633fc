"""The ports behind the embedded store's S3 port give nothing to who has no token."""

from __future__ import annotations

import json

import pytest
import urllib3

from enginefarm.store import embedded
from enginefarm.store.embedded import Server
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.ports import PORTS

HTTP_PORTS = [name for name in PORTS if "grpc" not in name]
SECRET = b"bytes of an engine that nobody may read"


@pytest.mark.parametrize("name", HTTP_PORTS)
def test_an_inner_port_reads_and_writes_nothing_without_a_token(
    name: str, store: EngineStore, s3_server: Server
) -> None:
    ref = store.put_bytes(SECRET)
    ports = json.loads((s3_server.home / "ports.json").read_text("utf-8"))[1:]
    base = f"http://127.0.0.1:{ports[PORTS.index(name)]}"
    path = f"/buckets/{embedded.BUCKET}/{store.objects.prefix}"
    with urllib3.PoolManager(retries=False, timeout=10) as pool:
        for method, asked in (
            ("GET", f"{path}blobs/sha256/{ref.digest[:2]}/{ref.digest}"),
            ("GET", f"{path}?pretty=y"),
            ("GET", "/dir/assign"),
            ("GET", "/dir/lookup?volumeId=1&fileId=1,01"),
            ("GET", "/vol/status"),
            ("PUT", f"{path}new"),
            ("POST", "/submit"),
            ("DELETE", path),
        ):
            answer = pool.request(method, base + asked)
            assert 400 <= answer.status < 500, (method, asked, answer.status)
            assert SECRET not in answer.data
    assert store.read_bytes(ref) == SECRET
    assert store.read_document("new") is None
