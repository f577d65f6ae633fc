"""What a newer version wrote is passed over with a note, and stops no other engine or recipe."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

import enginefarm
from enginefarm import cli
from enginefarm.documents.manifest import Manifest
from enginefarm.errors import NewerVersion
from enginefarm.store import channels, layout
from enginefarm.store.cache import BlobCache
from enginefarm.store.engine_store import EngineStore
from tests import tiny_recipe

Publish = Callable[..., Manifest]
Out = pytest.CaptureFixture[str]

pytestmark = pytest.mark.usefixtures("no_gpu_here")


def of_version_nine(store: EngineStore, key: str) -> None:
    found = store.read_document(key)
    assert found is not None
    document = json.loads(found[0]) | {"schema_version": 9, "later": {"a": 1}}
    store.put_object(key, json.dumps(document).encode())


def newest(store: EngineStore, recipe: str, channel: str) -> str:
    return next(channels.keys(store, recipe, channel))


def run(*arguments: str) -> int:
    return cli.run(list(arguments))


def test_every_command_goes_on_with_the_others(
    publish: Publish, store_environment: EngineStore, tmp_path: Path, capsys: Out
) -> None:
    newer = publish(b"newer")
    publish(b"l4", label="l4")
    publish(b"other", recipe="other", salt="other")
    store = store_environment
    assert run("promote", "model", "--allow-pending") == 0
    assert run("promote", "model", "--to", "candidate", "--allow-pending") == 0
    assert run("promote", "other", "--allow-pending") == 0
    of_version_nine(store, layout.manifest(newer.spec_digest))
    of_version_nine(store, newest(store, "model", "candidate"))
    store.put_object("channels/model/candidate/notes.txt", b"a stray object")
    store.put_object("index/model/stray", b"")
    capsys.readouterr()
    recipe = str(tiny_recipe.write(tmp_path / "recipe"))
    for command in (
        ("list",),
        ("list", "other"),
        ("plan", recipe),
        ("gc",),
        ("fsck",),
        ("report", "--output", str(tmp_path / "page.html")),
        ("channel", "model"),
        ("channel", "other"),
        ("channel", "other", "production"),
    ):
        assert run(*command) == 0, f"{command}: {capsys.readouterr().err}"
    host = BlobCache(tmp_path / "host")
    for name, label, content in (
        ("other", "t4", b"other"),
        ("other@production", "t4", b"other"),
        ("model", "l4", b"l4"),
        ("model@production", "l4", b"l4"),
    ):
        assert enginefarm.pull(name, gpu=label, cache=host).path.read_bytes() == content
    assert run("pull", "model@candidate", "--gpu", "l4") == NewerVersion.exit_code


def test_what_is_left_out_is_said(
    publish: Publish, store_environment: EngineStore, caplog: pytest.LogCaptureFixture
) -> None:
    newer = publish(b"newer")
    publish(b"l4", label="l4")
    assert run("promote", "model", "--allow-pending") == 0
    of_version_nine(store_environment, layout.manifest(newer.spec_digest))
    with caplog.at_level(logging.WARNING):
        enginefarm.pull("model@production", gpu="l4")
    assert f"manifests/{newer.spec_digest}" in caplog.text


def test_a_recipe_of_newer_manifests_alone_is_called_that(
    publish: Publish, store_environment: EngineStore
) -> None:
    of_version_nine(store_environment, layout.manifest(publish().spec_digest))
    with pytest.raises(NewerVersion) as refused:
        enginefarm.pull("model", gpu="t4")
    assert "update enginefarm" in refused.value.fix


def test_pull_says_which_fields_it_does_not_know(
    publish: Publish, store_environment: EngineStore, capsys: Out
) -> None:
    manifest = publish()
    key = layout.manifest(manifest.spec_digest)
    document = json.loads(manifest.canonical_json())
    document["later"] = 1
    document["build"]["speed"] = 2
    store_environment.put_object(key, json.dumps(document).encode())
    assert run("pull", "model", "--gpu", "t4") == 0
    said = capsys.readouterr().err
    assert "note: its manifest has fields that this enginefarm does not know" in said
    assert "build.speed" in said
    assert "later" in said


def test_a_newer_regression_rule_hides_no_report(
    publish: Publish, store_environment: EngineStore, tmp_path: Path
) -> None:
    publish()
    store_environment.put_object("benchmarks/rules/model.json", b'{"threshold": {"p50": "new"}}')
    assert run("report", "--output", str(tmp_path / "page.html")) == 0
