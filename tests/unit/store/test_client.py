"""botocore's descriptions of services: read once by a process, and from AWS_DATA_PATH too."""

from __future__ import annotations

from pathlib import Path

import pytest
from botocore.loaders import JSONFileLoader, Loader

from enginefarm.store import s3
from enginefarm.store.client import Credentials, _new_session

KEY = Credentials("a", "b")


def test_descriptions_of_one_s_own_still_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_DATA_PATH", str(tmp_path))
    folder = tmp_path / "toy" / "2026-01-01"
    folder.mkdir(parents=True)
    (folder / "service-2.json").write_text('{"metadata": {"serviceId": "Toy"}}')
    assert _new_session().get_service_data("toy")["metadata"]["serviceId"] == "Toy"


def test_a_process_reads_them_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = s3.connect("s3://one", credentials=KEY).client
    read: list[str] = []
    monkeypatch.setattr(JSONFileLoader, "load_file", lambda self, path: read.append(path))
    second = s3.connect("s3://two", credentials=KEY).client
    assert read == []
    assert second.meta.service_model.operation_names == first.meta.service_model.operation_names
    # A call changes the `http` of its operation, once, as it does among clients of one session
    # (botocore.handlers.remove_bucket_from_url_paths_from_model). Nothing else changes.
    monkeypatch.undo()
    fresh = Loader().load_service_model("s3", "service-2")
    shared = _new_session().get_service_data("s3")
    assert shared["shapes"] == fresh["shapes"]
    for name, operation in fresh["operations"].items():
        known = {**shared["operations"][name], "http": operation["http"]}
        assert known == operation
