from __future__ import annotations

import pytest
from sample_manifest import ref

from enginefarm.errors import UsageError
from enginefarm.store import layout
from enginefarm.store.layout import IndexEntry
from enginefarm.store.s3 import parse_url


def test_an_index_key_says_what_is_complete_and_reads_back() -> None:
    entry = IndexEntry("efficientnet-lite0", "a100-80gb", "int8", "ab" * 32)
    assert layout.parse_index(layout.index(entry)) == entry


@pytest.mark.parametrize("key", ["index/stray", "index/a/b/c/d/e", "index/a//fp16/x", "index/"])
def test_a_stray_object_is_not_an_index_entry(key: str) -> None:
    assert layout.parse_index(key) is None


def test_one_recipe_is_never_listed_with_another_whose_name_begins_the_same() -> None:
    entry = IndexEntry("resnet-50", "t4", "fp16", "ab" * 32)
    assert not layout.index(entry).startswith(layout.index_prefix("resnet"))
    assert layout.index(entry).startswith(layout.index_prefix("resnet-50", "t4"))


def test_blobs_are_spread_over_folders_by_digest() -> None:
    blob = ref(b"x")
    assert layout.blob(blob) == f"blobs/sha256/{blob.digest[:2]}/{blob.digest}"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket", ("bucket", "")),
        ("s3://bucket/", ("bucket", "")),
        ("s3://bucket/a/b/", ("bucket", "a/b/")),
    ],
)
def test_store_urls(url: str, expected: tuple[str, str]) -> None:
    assert parse_url(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        *("bucket", "http://bucket", "s3://", "s3://key:secret@bucket/x", "s3:///x", "s3://[::1"),
        *("s3://a b/c", "s3://bucket/../x", "s3://bucket/./x", "s3://bucket:80/x"),
        f"s3://{'n' * 300}/x",
    ],
)
def test_a_url_that_cannot_be_used_is_a_usage_error_and_is_not_repeated(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_url(url)
    assert "secret" not in str(caught.value)
    assert caught.value.exit_code == 2
