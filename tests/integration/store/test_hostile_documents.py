"""Documents of the store with values that nobody would write, or under another's name: each is one
clear thing, hides no other, and changes nothing that it is not about."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import enginefarm
from enginefarm import cli
from enginefarm.documents.host import Host
from enginefarm.documents.manifest import DeviceVerification, Manifest
from enginefarm.documents.spec import BlobRef
from enginefarm.errors import CorruptBlob, SignatureRejected, StoreMissing
from enginefarm.farm.worker import card
from enginefarm.pulling import fleet
from enginefarm.release import gc
from enginefarm.store import budgets, channels, layout, quarantine, s3, signing, statements
from enginefarm.store.cache import BlobCache
from enginefarm.store.engine_store import EngineStore
from enginefarm.tables import layers, rules, speeds
from enginefarm.tables.tables import BenchmarkTables
from tests.sample_rows import make_row

Publish = Callable[..., Manifest]
Out = pytest.CaptureFixture[str]
HERE = Host(os="linux", arch="x86_64")

pytestmark = pytest.mark.usefixtures("no_gpu_here")


def run(*arguments: str) -> int:
    return cli.run(list(arguments))


def rewrite(store: EngineStore, key: str, **changes: Any) -> None:
    found = store.objects.get(key)
    assert found is not None
    store.objects.put(key, json.dumps(json.loads(found[0]) | changes).encode())


def copy(store: EngineStore, key: str, to: str) -> None:
    found = store.objects.get(key)
    assert found is not None
    store.objects.put(to, found[0])


def keys(store: EngineStore) -> set[str]:
    return {info.key for info in store.objects.list("")}


@pytest.mark.parametrize(
    "changes",
    [
        {"created_at": "2026-01-01T00:00:00"},
        {"created_at": "0001-01-01T00:00:00+14:00"},
        {"created_at": "9999-12-31T23:59:59-14:00"},
        {"engine": {"digest": "0" * 64, "size_bytes": 10**400}},
        {"schema_version": -(10**400)},
    ],
    ids=["no-zone", "year-1", "year-9999", "size", "version"],
)
def test_a_value_that_nothing_can_be_done_with_is_a_damaged_manifest(
    publish: Publish,
    store_environment: EngineStore,
    tmp_path: Path,
    capsys: Out,
    changes: dict[str, Any],
) -> None:
    bad, good = publish(b"bad", label="l4"), publish(b"good")
    rewrite(store_environment, layout.manifest(bad.spec_digest), **changes)
    for command in (
        ("list",),
        ("show", "model"),
        ("pull", "model", "--gpu", "t4"),
        ("promote", "model", "--allow-pending"),
        ("report", "--output", str(tmp_path / "page.html")),
        ("gc",),
    ):
        assert run(*command) == 0, f"{command}: {capsys.readouterr().err}"
    assert run("show", bad.spec_digest) == CorruptBlob.exit_code
    assert bad.spec_digest[:12] in capsys.readouterr().err
    assert [one.spec_digest for one in store_environment.manifests()] == [good.spec_digest]


def test_another_engines_record_of_quarantine_withdraws_nothing(
    publish: Publish, store_environment: EngineStore, tmp_path: Path
) -> None:
    wrong, good = publish(b"wrong", label="l4"), publish(b"good")
    (tmp_path / "log").write_text("NaN")
    failed = DeviceVerification(status="failed", reason="NaN")
    quarantine.record(store_environment, wrong, failed, tmp_path / "log")
    there = f"{quarantine.QUARANTINE}{good.spec_digest}.json"
    copy(store_environment, f"{quarantine.QUARANTINE}{wrong.spec_digest}.json", there)
    with pytest.raises(CorruptBlob, match="another engine") as refused:
        quarantine.quarantined(store_environment, good.spec_digest)
    assert "delete it" in refused.value.fix
    assert run("fsck", "--repair") == CorruptBlob.exit_code
    assert enginefarm.pull("model", gpu="t4").path.read_bytes() == b"good"
    store_environment.objects.put(there, b"damaged")
    assert run("fsck", "--repair") == CorruptBlob.exit_code, "and it is left for a person to see"
    assert there in keys(store_environment)


def test_a_host_is_hidden_neither_by_anothers_channel_nor_by_a_copy(
    publish: Publish, store_environment: EngineStore, capsys: Out
) -> None:
    for name in ("bad", "good"):
        manifest = publish(name.encode(), recipe=name, salt=name)
        assert run("promote", name, "--allow-pending") == 0
        fleet.report(store_environment, name, "production", manifest, HERE, f"host-{name}")
    copy(
        store_environment,
        "fleet/good/production/host-good/unknown-any.json",
        "fleet/good/production/host-twin/unknown-any.json",
    )
    (newest,) = channels.keys(store_environment, "bad", "production")
    store_environment.objects.put(newest, b"damaged")
    capsys.readouterr()
    assert run("fleet", "--json") == 0
    found = {one["state"]["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert set(found) == {"host-bad", "host-good"}
    assert found["host-good"]["verdict"] == "current"
    assert found["host-bad"]["verdict"] == "unknown"
    assert newest in found["host-bad"]["words"]


def test_a_card_that_cannot_be_read_or_is_anothers_hides_no_worker(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mine = card.Card(
        name="w",
        role="cpu",
        pool="cpu",
        gpu_name=None,
        host="h",
        pid=1,
        started_at=datetime.now(UTC),
    )
    card.write(store, mine)
    copy(store, card.key(mine), "workers/gpu-t4/w.json")
    monkeypatch.setattr(s3, "MOST_READ_BYTES", 1000)
    store.objects.put("workers/cpu/huge.json", b" " * 1001)
    store.objects.put("workers/cpu/empty.json", b"")
    with caplog.at_level(logging.WARNING):
        assert [one.card for one in card.list_workers(store)] == [mine]
    for name in ("gpu-t4/w", "cpu/huge", "cpu/empty"):
        assert f"workers/{name}.json" in caplog.text


def test_a_channel_whose_newest_revision_is_damaged_says_what_to_do(
    publish: Publish, store_environment: EngineStore, capsys: Out
) -> None:
    publish(b"one")
    assert run("promote", "model", "--allow-pending") == 0
    publish(b"two", minutes=1, salt="2")
    assert run("promote", "model", "--allow-pending", "--to", "candidate") == 0
    assert run("promote", "model", "--allow-pending") == 0
    newest, _ = channels.keys(store_environment, "model", "production")
    store_environment.objects.put(newest, b"")
    for command in (("pull", "model@production", "--gpu", "t4"), ("promote", "model")):
        capsys.readouterr()
        assert run(*command) == CorruptBlob.exit_code
        said = capsys.readouterr().err
        assert newest in said
        assert "delete it, and the channel points at the revision before" in said
    assert run("channel", "model") == run("channel", "model", "production") == 0
    assert "candidate" in capsys.readouterr().out
    assert run("fsck", "--repair") == CorruptBlob.exit_code
    assert newest in keys(store_environment), "no command moves a channel back by itself"
    store_environment.objects.delete(newest)
    assert enginefarm.pull("model@production", gpu="t4").path.read_bytes() == b"one"


def test_a_rollback_passes_no_damaged_revision_over_unless_one_is_named(
    publish: Publish, store_environment: EngineStore
) -> None:
    for number in range(3):
        publish(b"%d" % number, minutes=number, salt=str(number))
        assert run("promote", "model", "--allow-pending") == 0
    _, second, _ = channels.keys(store_environment, "model", "production")
    store_environment.objects.put(second, b"[]")
    assert run("rollback", "model", "production") == CorruptBlob.exit_code
    assert run("rollback", "model", "production", "--to", "2") == StoreMissing.exit_code
    assert run("rollback", "model", "production", "--to", "1") == 0
    assert enginefarm.pull("model@production", gpu="t4").path.read_bytes() == b"0"


def test_fsck_takes_out_what_is_made_again_and_says_who_makes_it(
    publish: Publish, store_environment: EngineStore, capsys: Out
) -> None:
    manifest = publish()
    row = make_row(
        recipe="model", spec_digest=manifest.spec_digest, engine_digest=manifest.engine.digest
    )
    made = {
        f"{budgets.BUDGETS}model.json": "the next build",
        f"{rules.RULES}model.json": "the next build",
        speeds.key("model", "t4"): "the next measurement",
        layers.key(manifest.spec_digest): "the next profile",
        "fleet/model/production/host/t4-any.json": "its host",
    }
    for key in made:
        store_environment.objects.put(key, b"{")
    capsys.readouterr()
    assert run("fsck") == CorruptBlob.exit_code
    capsys.readouterr()
    assert run("fsck", "--repair", "--json") == 0
    said = {one["key"]: one["repair"] for one in json.loads(capsys.readouterr().out)["findings"]}
    assert set(said) == set(made)
    for key, who in made.items():
        assert who in said[key]
    assert not set(made) & keys(store_environment)
    assert run("fsck") == 0
    store_environment.objects.put(speeds.key("model", "t4"), b"damaged")
    BenchmarkTables(store_environment.objects).append([row])
    assert speeds.read(store_environment.objects, "model", "t4").engine(manifest.spec_digest)


def test_rows_of_a_runtime_that_is_not_known_yet_hide_no_other_and_are_kept(
    publish: Publish, store_environment: EngineStore, tmp_path: Path, capsys: Out
) -> None:
    publish(recipe="later", salt="later")
    publish(recipe="other", salt="other")
    tables = BenchmarkTables(store_environment.objects)
    later = make_row(recipe="later").model_copy(update={"runtime": "later"})
    (key,) = tables.append([later])
    tables.append([make_row(recipe="other"), make_row(recipe="other", batch=4)])
    page = tmp_path / "page.html"
    for command in (("report", "--output", str(page)), ("bench", "table"), ("bench", "compact")):
        assert run(*command) == 0, f"{command}: {capsys.readouterr().err}"
    assert "other" in page.read_text("utf-8")
    assert key in keys(store_environment), "a newer version still reads it"
    assert run("promote", "other", "--allow-pending") == 0
    assert run("promote", "later", "--allow-pending") == CorruptBlob.exit_code
    assert "runtime" in capsys.readouterr().err


def test_gc_reads_what_it_is_not_written_for_in_pieces(
    publish: Publish, store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = store.put_bytes(b"held by a document that is too large to be read")
    free = store.put_bytes(b"held by nothing")
    monkeypatch.setattr(s3, "MOST_READ_BYTES", 1000)
    monkeypatch.setattr(s3, "PIECE_BYTES", 1024)
    for ahead in (1000, 1024 - 32, 2048 - 1, 1024):
        text = b" " * ahead + held.digest.encode()
        store.objects.put("unheard-of/huge.json", text + b" " * 3000)
        later = datetime.now(UTC).replace(year=datetime.now(UTC).year + 1)
        found = {one.key for one in gc.collect(store, now=later).garbage}
        assert layout.blob(free) in found
        assert layout.blob(held) not in found, ahead


def test_a_damaged_statement_of_a_name_hides_no_other_engine(
    publish: Publish,
    store_environment: EngineStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    public, _ = signing.generate(tmp_path / "farm.pem")
    monkeypatch.setenv("ENGINEFARM_SIGNING_KEY", str(tmp_path / "farm.pem"))
    monkeypatch.setenv("ENGINEFARM_TRUST", str(public))
    store = store_environment
    theirs = publish(b"theirs", recipe="other", salt="other", minutes=1, precision="int8")
    publish(b"own")
    store.list_under("model", theirs)
    key = statements.alias_key("model", theirs.spec_digest)
    host = BlobCache(tmp_path / "host")
    for body in (b"", b"[", b"{}", b'"x"', b'{"schema_version": 9}'):
        store.objects.put(key, body)
        with pytest.raises((SignatureRejected, CorruptBlob, enginefarm.errors.NewerVersion)):
            enginefarm.pull("model", gpu="t4", precision="int8", cache=host)
        assert enginefarm.pull("model", gpu="t4", cache=host).path.read_bytes() == b"own"


def test_a_blob_of_another_size_is_refused_before_anything_is_laid_out(
    publish: Publish, store_environment: EngineStore, tmp_path: Path, capsys: Out
) -> None:
    manifest = publish(b"engine")
    claimed = BlobRef(digest=manifest.engine.digest, size_bytes=2**62)
    rewrite(
        store_environment,
        layout.manifest(manifest.spec_digest),
        engine=claimed.model_dump(mode="json"),
    )
    assert run("list") == 0
    host = tmp_path / "host"
    with pytest.raises(CorruptBlob, match="bytes are expected"):
        enginefarm.pull("model", gpu="t4", cache=BlobCache(host))
    assert not list(host.rglob("*.part"))
