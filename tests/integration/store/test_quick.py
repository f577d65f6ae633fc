"""A pull reads with obstore where the environment has a key, and botocore answers all else."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_proxy import FaultyProxy

from enginefarm.documents.manifest import Manifest
from enginefarm.errors import StoreDenied, StoreMissing, StoreUnavailable
from enginefarm.store import open_store, quick_client, s3
from enginefarm.store.embedded import Server
from enginefarm.store.engine_store import EngineStore
from tests.second_server import KEY, second_server

KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
HERE = {**KEYS, "AWS_ENDPOINT_URL": "http://127.0.0.1:9000"}
URL = "s3://bucket/prefix"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without ~/.aws, and a machine without a proxy."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in os.environ:
        if name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)


def answers(objects: s3.ObjectStore) -> list[Any]:
    listed = [(one.key, one.size_bytes, one.etag, one.modified) for one in objects.list("docs/")]
    read = [objects.get(key) for key in ("docs/a.json", "docs/deep/b.json", "docs/none.json")]
    return [listed, list(objects.list("docs/none/")), read]


def require_the_same(url: str) -> None:
    whole = s3.connect(url)
    for number in range(3):
        whole.put(f"docs/{number}", b"x" * number)
    whole.put("docs/a.json", b"{}")
    whole.put("docs/deep/b.json", b"[1]")
    fast = quick_client.connect(url)
    assert isinstance(fast, quick_client.QuickStore)
    assert answers(fast) == answers(whole)
    assert fast.made is None, "botocore was asked"


def test_it_answers_as_botocore_does(store_environment: EngineStore) -> None:
    require_the_same(store_environment.url)


def test_it_answers_as_botocore_does_on_a_second_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with second_server(tmp_path) as endpoint:
        s3.connect(URL, endpoint=endpoint, credentials=KEY).create_bucket()
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY.secret_key)
        require_the_same(URL)


def test_a_pull_from_the_cache_loads_no_botocore(publish: Any, store_environment: Any) -> None:
    publish()
    script = (
        "import sys; from enginefarm.cli import run; run(['pull', 'model', '--gpu', 't4']);"
        "sys.exit('botocore' in sys.modules)"
    )
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, check=False, timeout=120).returncode == 1  # it downloads
    assert subprocess.run(command, check=False, timeout=120).returncode == 0


@pytest.mark.parametrize(
    ("changes", "url"),
    [
        ({"AWS_PROFILE": "farm"}, URL),
        ({"AWS_SECRET_ACCESS_KEY": ""}, URL),
        ({"AWS_SECRET_ACCESS_KEY": None}, URL),
        ({"AWS_ROLE_ARN": "arn:aws:iam::1:role/x"}, URL),
        ({"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/x"}, URL),
        ({"AWS_CONFIG_FILE": "/etc/aws"}, URL),
        ({"AWS_USE_FIPS_ENDPOINT": "true"}, URL),
        ({"HTTPS_PROXY": "http://proxy"}, URL),
        ({"no_proxy": "*"}, URL),
        ({"AWS_ENDPOINT_URL": "https://s3.example", "AWS_CA_BUNDLE": "/ca"}, URL),
        ({"AWS_ENDPOINT_URL": None, "REQUESTS_CA_BUNDLE": "/ca"}, URL),
        ({}, "s3://bucket.with.dots/prefix"),
        ({}, "s3://bucket/pre//fix"),
        ({}, "s3://bucket/a prefix"),
    ],
)
def test_what_botocore_reads_in_another_way_is_left_to_botocore(
    tmp_path: Path, changes: dict[str, str | None], url: str
) -> None:
    environment = {name: value for name, value in {**HERE, **changes}.items() if value is not None}
    assert quick_client.fits(URL, HERE, tmp_path)
    assert not quick_client.fits(url, environment, tmp_path)


@pytest.mark.parametrize(
    "more", [{"AWS_SESSION_TOKEN": "t", "AWS_REGION": "eu-west-1"}, {"AWS_CA_BUNDLE": "/ca"}]
)
def test_a_key_with_its_token_and_region_fits(tmp_path: Path, more: dict[str, str]) -> None:
    assert quick_client.fits(URL, HERE | more, tmp_path)


@pytest.mark.parametrize("name", ["config", "credentials"])
def test_files_of_the_aws_configuration_are_botocores(tmp_path: Path, name: str) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / name).write_text("[default]\nregion = eu-west-1\n", "utf-8")
    assert not quick_client.fits(URL, HERE, tmp_path)


def test_errors_are_those_of_botocore(
    store_environment: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = f"nobody-has-{secrets.token_hex(4)}"
    with pytest.raises(StoreMissing, match=bucket):
        open_store(f"s3://{bucket}", to_pull=True).objects.get("a.json")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    refused = open_store(to_pull=True).objects
    with pytest.raises(StoreDenied, match="SignatureDoesNotMatch"):
        refused.get("a.json")
    with pytest.raises(StoreDenied):
        list(open_store(to_pull=True).objects.list("docs/"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:9"):
        open_store(to_pull=True).objects.get("a.json")


@pytest.fixture
def proxy(s3_server: Server) -> Iterator[FaultyProxy]:
    made = FaultyProxy(s3_server.endpoint)
    yield made
    made.close()


@pytest.mark.parametrize("fault", ["cut", "truncated", "500", "503", "slow", "reset"])
def test_an_answer_that_is_spoiled_is_asked_for_again(
    store_environment: EngineStore,
    proxy: FaultyProxy,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    data = os.urandom(40_000)
    keys = [f"docs/{number:02}" for number in range(12)]
    for key in keys:
        store_environment.objects.put(key, data)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    proxy.faults = (fault,)
    for chance in (1.0, 0.0):  # the first answer is spoiled, then every fifth
        objects = open_store(to_pull=True).objects
        proxy.chance = chance or 0.2
        spoiled = proxy.done[fault]
        if chance:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(objects, "_make", lambda: _calm(proxy, store_environment.url))
                assert [one.key for one in objects.list("docs/")] == keys
            assert proxy.done[fault] == spoiled + 1
        assert all(found and found[0] == data for found in map(objects.get, keys))


def _calm(proxy: FaultyProxy, url: str) -> s3.ObjectStore:
    proxy.chance = 0
    return s3.connect(url)


def _pulled_in_a_child(url: str, sent: Any) -> None:
    objects = open_store(url, to_pull=True).objects
    sent.send(objects.get("docs/a"))


def test_after_a_fork_botocore_reads(store_environment: EngineStore) -> None:
    etag = store_environment.objects.put("docs/a", b"bytes")
    objects = open_store(to_pull=True).objects
    assert objects.get("docs/a") == (b"bytes", etag)
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    child = context.Process(target=_pulled_in_a_child, args=(store_environment.url, theirs))
    child.start()
    try:
        assert mine.poll(60)
        assert mine.recv() == (b"bytes", etag)
    finally:
        child.kill()
        child.join()


def test_the_manifests_are_the_same(publish: Any, store_environment: EngineStore) -> None:
    published: Manifest = publish()
    assert list(open_store(to_pull=True).manifests("model")) == [published]
