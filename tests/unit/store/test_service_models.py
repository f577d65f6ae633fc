"""botocore's service descriptions by another parser: the same content, the same client."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from botocore.loaders import Loader

from enginefarm.store.service_models import PydanticFileLoader, new_session


@pytest.mark.parametrize("name", ["endpoints", "partitions", "s3/2006-03-01/service-2"])
def test_it_reads_what_botocore_reads(name: str) -> None:
    assert Loader(file_loader=PydanticFileLoader()).load_data(name) == Loader().load_data(name)


def test_the_order_of_fields_is_the_file_s(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text('{"b": 1, "a": {"d": 2, "c": 3}}')
    (tmp_path / "two.json.gz").write_bytes(gzip.compress(b'{"b": [1, 2], "a": null}'))
    loader = PydanticFileLoader()
    assert json.dumps(loader.load_file(str(tmp_path / "one"))) == '{"b": 1, "a": {"d": 2, "c": 3}}'
    assert list(loader.load_file(str(tmp_path / "two"))) == ["b", "a"]
    assert loader.load_file(str(tmp_path / "three")) is None
    assert [loader.exists(str(tmp_path / name)) for name in ("one", "two", "three")] == [
        True,
        True,
        False,
    ]


def test_descriptions_of_one_s_own_still_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_DATA_PATH", str(tmp_path))
    folder = tmp_path / "toy" / "2026-01-01"
    folder.mkdir(parents=True)
    (folder / "service-2.json").write_text('{"metadata": {"serviceId": "Toy"}}')
    assert new_session().get_service_data("toy")["metadata"]["serviceId"] == "Toy"


def test_a_process_reads_them_once(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"region_name": "us-east-1", "aws_access_key_id": "a", "aws_secret_access_key": "b"}
    first = new_session().create_client("s3", **arguments)
    read: list[str] = []
    monkeypatch.setattr(PydanticFileLoader, "load_file", lambda self, path: read.append(path))
    second = new_session().create_client("s3", **arguments)
    assert read == []
    assert second.meta.service_model.operation_names == first.meta.service_model.operation_names
    # A call changes the `http` of its operation, once, as it does among clients of one session
    # (botocore.handlers.remove_bucket_from_url_paths_from_model). Nothing else changes.
    fresh = Loader().load_service_model("s3", "service-2")
    shared = new_session().get_service_data("s3")
    assert shared["shapes"] == fresh["shapes"]
    for name, operation in fresh["operations"].items():
        known = {**shared["operations"][name], "http": operation["http"]}
        assert known == operation
