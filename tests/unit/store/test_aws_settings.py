"""AWS_* variables and files that cannot be used: one error that names them, and no secret."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from enginefarm.errors import SignatureRejected, UsageError
from enginefarm.store import open_store, quick_client, s3, signing
from enginefarm.store.client import is_endpoint

SECRET = "hush-hush"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


def refusal() -> str:
    """The error of a store, by the quick reader or without it."""
    with pytest.raises(UsageError) as raised:
        (quick_client.connect("s3://bucket") or s3.connect("s3://bucket")).get("key")
    assert SECRET not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "notaurl",
        "127.0.0.1:8333",
        "ftp://host",
        "http://",
        "http://[::1",
        "http://host:99999",
        "http://host:0",
        "http://ho st",
        "http://host\n",
        "http://höst",
        f"http://user:{SECRET}@host",
        f"http://host?key={SECRET}",
        f"http://host#{SECRET}",
    ],
)
@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_address_that_is_none(name: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, url)
    assert f"{name} is not the address of a server" in refusal()


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8333", "https://s3.example.com", "http://[::1]:9000", "https://h/s3/"]
)
def test_addresses_that_are(url: str) -> None:
    assert is_endpoint(url)
    s3.connect("s3://bucket", endpoint=url)


@pytest.mark.parametrize("end", ["\n", " ", "\t", "\x07", "é"])
@pytest.mark.parametrize(
    "name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"]
)
def test_a_key_that_was_copied_with_its_line(
    name: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, SECRET + end)
    assert name in refusal()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("AWS_REGION", "no region", "no region"),
        ("AWS_PROFILE", "nobody", "nobody"),
        ("AWS_CONFIG_FILE", __file__, __file__),
        ("AWS_SHARED_CREDENTIALS_FILE", __file__, __file__),
        ("AWS_SECRET_ACCESS_KEY", "", "AWS_SECRET_ACCESS_KEY"),
        ("AWS_STS_REGIONAL_ENDPOINTS", "elsewhere", "elsewhere"),
    ],
)
def test_what_botocore_does_not_take_is_named(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert said in refusal()


def test_a_fragment_of_a_store_is_not_left_out_in_silence() -> None:
    with pytest.raises(UsageError):
        s3.parse_url("s3://bucket/prefix#other")


def test_a_key_file_that_has_no_end_is_not_read(tmp_path: Path) -> None:
    large = tmp_path / "large.pem"
    with large.open("wb") as file:
        file.truncate(signing.MOST_KEY_BYTES + 1)
    pipe = tmp_path / "pipe.pem"
    os.mkfifo(pipe)
    for path in ("/dev/zero", str(pipe), str(large)):
        with pytest.raises(SignatureRejected):
            signing.trust({"ENGINEFARM_TRUST": path})
        with pytest.raises(SignatureRejected):
            signing.signer({signing.KEY: path})


@pytest.mark.parametrize("url", ["embedded://", "embedded://folder", "embedded://./folder"])
def test_an_embedded_store_is_not_started_in_the_working_folder(url: str) -> None:
    with pytest.raises(UsageError, match="does not contain an absolute folder"):
        open_store(url)
