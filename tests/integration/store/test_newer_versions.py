"""What a newer version wrote is passed over with a note, and stops no other engine or recipe."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

import enginefarm
from enginefarm import cli
from enginefarm.documents.host import Host
from enginefarm.documents.manifest import Manifest
from enginefarm.errors import CorruptBlob, NewerVersion, SignatureRejected
from enginefarm.pulling import fleet
from enginefarm.recipes import recipe_store
from enginefarm.store import channels, failed_builds, layout, signing
from enginefarm.store.cache import BlobCache
from enginefarm.store.engine_store import EngineStore
from enginefarm.tables.tables import BenchmarkTables
from tests import tiny_recipe
from tests.sample_rows import make_row

Publish = Callable[..., Manifest]
Out = pytest.CaptureFixture[str]

pytestmark = pytest.mark.usefixtures("no_gpu_here")


def of_version_nine(store: EngineStore, key: str) -> None:
    found = store.objects.get(key)
    assert found is not None
    document = json.loads(found[0]) | {"schema_version": 9, "later": {"a": 1}}
    store.objects.put(key, json.dumps(document).encode())


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
    store.objects.put("channels/model/candidate/notes.txt", b"a stray object")
    store.objects.put("index/model/stray", b"")
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
    store_environment.objects.put(key, json.dumps(document).encode())
    assert run("pull", "model", "--gpu", "t4") == 0
    said = capsys.readouterr().err
    assert "note: its manifest has fields that this enginefarm does not know" in said
    assert "build.speed" in said
    assert "later" in said


def test_a_newer_regression_rule_hides_no_report(
    publish: Publish, store_environment: EngineStore, tmp_path: Path
) -> None:
    publish()
    store_environment.objects.put("benchmarks/rules/model.json", b'{"threshold": {"p50": "new"}}')
    assert run("report", "--output", str(tmp_path / "page.html")) == 0


NO_DIGEST = "0" * 64
STRAYS = (
    "attestations/x",
    "benchmarks/date=2026-99-99/recipe=other/w-" + NO_DIGEST + ".parquet",
    "benchmarks/date=yesterday/notes.parquet",
    "benchmarks/rules/notes/x.json",
    "blobs/sha256/zz/notes",
    "budgets/x",
    "channels/notes.txt",
    "channels/other/notes.txt",
    "channels/other/production/notes.txt",
    "failures/other/t4/notes",
    "fleet/other/production/b.json",
    "fleet/x",
    "index/other/t4/fp16/notes",
    "manifests/notes.txt",
    "quarantine/notes.txt",
    "recipes/Not A Name.json",
    "recipes/a/b.json",
    "recipes/notes.txt",
    "stages/export/notes.txt",
    "timing-caches/x",
    "unheard-of/x.json",
    "workers/cpu/notes.txt",
)


def fill(store: EngineStore, publish: Publish, folder: Path, recipe: str) -> str:
    """One document of each kind that a farm writes of a recipe; returns the recipe's file."""
    manifest = publish(recipe.encode(), recipe=recipe, salt=recipe)
    assert run("promote", recipe, "--allow-pending") == 0
    row = make_row(
        recipe=recipe, spec_digest=manifest.spec_digest, engine_digest=manifest.engine.digest
    )
    BenchmarkTables(store.objects).append([row])
    here = Host(os="linux", arch="x86_64")
    fleet.report(store, recipe, "production", manifest, here, f"host-{recipe}")
    failed_builds.record(store, recipe, "t4", "fp16", NO_DIGEST, b"said")
    path = tiny_recipe.write(folder / recipe, name=recipe)
    recipe_store.push(store, path)
    return str(path)


def commands(recipe: str, page: Path) -> tuple[tuple[str, ...], ...]:
    return (
        ("list",),
        ("plan", recipe),
        ("gc",),
        ("channel", "other", "production"),
        ("fleet",),
        ("recipes", "list"),
        ("bench", "table"),
        ("bench", "compact"),
        ("log", "other", "--gpu", "t4"),
        ("pull", "other@production", "--gpu", "t4"),
        ("pull", "other", "--gpu", "t4", "--for", "latency"),
        ("report", "--output", str(page)),
        ("promote", "other", "--allow-pending"),
    )


def rewrite(store: EngineStore, recipe: str, change: Callable[[bytes], bytes]) -> int:
    """Every document of a recipe, changed; returns how many there were."""
    mine = {one.spec_digest for one in store.index(recipe)}
    found = [
        info.key
        for info in store.objects.list("")
        if f"{recipe}." in info.key
        or f"{recipe}/" in info.key
        or any(digest in info.key for digest in mine)
    ]
    changed = 0
    for key in found:
        document = store.objects.get(key)
        if document is not None and document[0] and not key.startswith("index/"):
            store.objects.put(key, change(document[0]))
            changed += 1
    return changed


def newer(body: bytes) -> bytes:
    """As a later version could write it: everything is called the same and has another type."""
    try:
        document = json.loads(body)
    except ValueError:
        return body + b" of a newer version"
    if isinstance(document.get("recipe"), dict):
        document["recipe"]["schema_version"] = 9
    return json.dumps({**{key: [value] for key, value in document.items()}, **NINE}).encode()


NINE = {"schema_version": 9}
UNREADABLE: dict[str, Callable[[bytes], bytes]] = {
    "newer": newer,
    "empty": lambda _: b"",
    "no-json": lambda _: b"\xff{",
    "null": lambda _: b"null",
    "deep": lambda _: b"[" * 100_000,
}


def test_recipes_whose_documents_cannot_be_read_and_strays_stop_no_other(
    publish: Publish, store_environment: EngineStore, tmp_path: Path, capsys: Out
) -> None:
    """Five recipes, each of whose documents is unreadable in a way of its own; and one that is
    whole, of which every command has to be right."""
    for name, change in UNREADABLE.items():
        fill(store_environment, publish, tmp_path, name)
        assert rewrite(store_environment, name, change) >= 7, "a document of each kind"
    recipe = fill(store_environment, publish, tmp_path, "other")
    for key in STRAYS:
        store_environment.objects.put(key, b"stray")
    failed = {
        command: capsys.readouterr().err
        for command in commands(recipe, tmp_path / "page.html")
        if run(*command) != 0
    }
    assert failed == {}
    assert set(recipe_store.names(store_environment)) == {"other", *UNREADABLE}
    assert [one.name for one in recipe_store.readable(store_environment)] == ["other"]
    assert [one.state.name for one in fleet.statuses(store_environment)] == ["host-other"]


def test_a_recipe_of_a_newer_version_is_called_that_and_can_be_removed(
    publish: Publish, store_environment: EngineStore, tmp_path: Path
) -> None:
    fill(store_environment, publish, tmp_path, "model")
    key = "recipes/model.json"
    found = store_environment.objects.get(key)
    assert found is not None
    later = json.loads(found[0])
    later["schema_version"] = 9
    for change in ({}, {"files": 3}):
        later.update(change)
        store_environment.objects.put(key, json.dumps(later).encode())
        with pytest.raises(NewerVersion):
            recipe_store.read(store_environment, "model")
    assert run("recipes", "remove", "model") == 0
    assert recipe_store.names(store_environment) == ()


def test_a_gate_does_not_judge_by_rows_that_it_cannot_read(
    publish: Publish, store_environment: EngineStore, tmp_path: Path
) -> None:
    fill(store_environment, publish, tmp_path, "model")
    (row,) = store_environment.objects.list("benchmarks/date=")
    store_environment.objects.put(row.key, b"damaged")
    assert run("promote", "model", "--allow-pending") == CorruptBlob.exit_code
    assert run("bench", "compact") == 0
    assert store_environment.objects.get(row.key) is not None, "it is left for a person to see"


def test_a_signature_without_end_is_one_refusal(
    publish: Publish, store_environment: EngineStore, tmp_path: Path
) -> None:
    public, _ = signing.generate(tmp_path / "farm.pem")
    manifest = publish()
    payload = base64.b64encode(b"[" * 100_000).decode()
    envelope = {"payloadType": "x", "payload": payload, "signatures": []}
    trusted = signing.trust({"ENGINEFARM_TRUST": str(public)})
    assert trusted is not None
    with pytest.raises(SignatureRejected):
        trusted.require(manifest, json.dumps(envelope).encode())
