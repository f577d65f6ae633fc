"""The ports behind the embedded store's S3 port serve only who has a token or the certificate."""

from __future__ import annotations

import json
import ssl
import stat
from pathlib import Path

import pytest
import urllib3

from enginefarm.store import embedded, inner_ports
from enginefarm.store.embedded import Server
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.weed import PORTS
from tests import grpc_probe

GRPC_PORTS = [name for name in PORTS if "grpc" in name]
HTTP_PORTS = [name for name in PORTS if "grpc" not in name]
SECRET = b"bytes of an engine that nobody may read"


def port_of(server: Server, name: str) -> int:
    return json.loads((server.home / "ports.json").read_text("utf-8"))[1:][PORTS.index(name)]


@pytest.mark.parametrize("name", HTTP_PORTS)
def test_an_inner_port_reads_and_writes_nothing_without_a_token(
    name: str, store: EngineStore, s3_server: Server
) -> None:
    ref = store.put_bytes(SECRET)
    base = f"http://127.0.0.1:{port_of(s3_server, name)}"
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
    assert store.objects.get("new") is None


@pytest.mark.parametrize("name", GRPC_PORTS)
def test_a_grpc_port_serves_the_stores_own_certificate_alone(
    name: str, s3_server: Server, tmp_path: Path
) -> None:
    port = port_of(s3_server, name)
    inner_ports.certificate(tmp_path)  # another store's certificate
    assert not grpc_probe.answers(port, None)
    assert not grpc_probe.answers(port, grpc_probe.with_certificate(None))
    assert not grpc_probe.answers(port, grpc_probe.with_certificate(tmp_path))
    assert grpc_probe.answers(port, grpc_probe.with_certificate(s3_server.home)), (
        "the question is one it answers"
    )


def test_the_ports_offer_the_certificate_that_lies_in_the_folder(s3_server: Server) -> None:
    """SeaweedFS's parts compare it, so an impostor on one of its ports is not believed."""
    tls = grpc_probe.with_certificate(s3_server.home)
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_verify_locations(s3_server.home / inner_ports.CERTIFICATE)
    tls.check_hostname = True
    assert grpc_probe.answers(port_of(s3_server, "filer.port.grpc"), tls)


def test_no_other_user_reads_the_folder_or_its_sockets(s3_server: Server) -> None:
    """Their modes alone decide it: the sockets in /tmp have no folder of ours around them."""
    sockets = [
        Path(f"/tmp/seaweedfs-{name.split('.')[0]}-grpc-{port_of(s3_server, name)}.sock")
        for name in GRPC_PORTS
    ]
    names = ("data", inner_ports.CERTIFICATE, inner_ports.PRIVATE_KEY, "credentials.json")
    for path in (*(s3_server.home / name for name in names), *sockets):
        mode = path.stat().st_mode
        assert not mode & (stat.S_IRWXG | stat.S_IRWXO), (path, stat.filemode(mode))
