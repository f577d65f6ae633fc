"""Hosts that say what they run, against what their channel names."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from enginefarm import cli
from enginefarm.documents.manifest import Manifest
from enginefarm.errors import StoreMissing, StoreUnavailable, UsageError
from enginefarm.host.detect import detect
from enginefarm.pulling import fleet
from enginefarm.release.promote import promote
from enginefarm.report import nightly
from enginefarm.store.engine_store import EngineStore

Out = pytest.CaptureFixture[str]
Publish = Callable[..., Manifest]

pytestmark = pytest.mark.usefixtures("no_gpu_here")


@pytest.fixture
def first(publish: Publish, store: EngineStore) -> Manifest:
    """In production, as revision 1, and run by the host gpu-1."""
    manifest = publish(b"first")
    promote(store, "model", "production", allow_pending=True)
    fleet.report(store, "model", "production", manifest, detect("t4"), "GPU_1.example.org")
    return manifest


def found(out: Out, *options: str) -> list[dict[str, Any]]:
    assert cli.run(["fleet", "model@production", "--json", *options]) == 0
    return json.loads(out.readouterr().out)


def test_a_host_is_current_until_the_channel_moves_on(
    first: Manifest, publish: Publish, store: EngineStore, capsys: Out
) -> None:
    (one,) = found(capsys)
    assert (one["verdict"], one["state"]["revision"]) == ("current", 1)
    assert one["state"]["name"] == "gpu_1.example.org"
    newer = publish(b"second", graph=b"graph", salt="2", minutes=5)
    (would,) = found(capsys, "--promote", "newest")
    assert would["verdict"] == "current"
    assert would["gets"] == f"t4/fp16 {newer.spec_digest[:12]}"
    promote(store, "model", "production", allow_pending=True)
    (one,) = found(capsys)
    assert one["verdict"] == "lags"
    assert "revision 2, which does not name its engine" in one["words"]
    assert "1 host, 1 lagging" in said(capsys)
    assert "gpu_1.example.org" in nightly.page(store)


def said(out: Out) -> str:
    assert cli.run(["fleet"]) == 0
    return out.readouterr().out


def test_a_new_revision_with_its_engine_leaves_a_host_current(
    first: Manifest, publish: Publish, store: EngineStore, capsys: Out
) -> None:
    publish(b"of the l4", label="l4")
    promote(store, "model", "production", allow_pending=True)
    assert [one["verdict"] for one in found(capsys)] == ["current"]
    (would,) = found(capsys, "--promote", "newest")
    assert would["gets"] is None


def wait_for_verdict(store: EngineStore, wanted: str) -> None:
    end = time.monotonic() + 60
    while [one.verdict for one in fleet.statuses(store)] != [wanted]:
        assert time.monotonic() < end
        time.sleep(0.2)


def test_a_host_reports_again_when_a_new_build_has_the_same_bytes(
    publish: Publish, store: EngineStore, tmp_path: Path
) -> None:
    """Nothing is swapped then, but the channel no longer names the spec of the first report."""
    publish(b"the same bytes")
    promote(store, "model", "production", allow_pending=True)
    follow = ["pull", "model@production", "--gpu", "t4", "--watch", "1", "--dest"]
    host = subprocess.Popen([sys.executable, "-m", "enginefarm", *follow, str(tmp_path / "served")])
    try:
        wait_for_verdict(store, "current")
        publish(b"the same bytes", salt="2", minutes=5)
        promote(store, "model", "production", allow_pending=True)
        wait_for_verdict(store, "current")
        (one,) = fleet.statuses(store)
        assert one.state.revision == 2
    finally:
        host.terminate()
        host.wait()


def test_a_report_that_failed_is_made_at_the_next_look(
    first: Manifest, store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = fleet.Reporter("model", "production", "t4", None)
    with monkeypatch.context() as away:
        away.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        away.setenv("AWS_MAX_ATTEMPTS", "1")
        with pytest.raises(StoreUnavailable):
            report(first)
    report(first)
    assert len(fleet.statuses(store)) == 2, "gpu-1, and this machine"
    this = next(one for one in fleet.statuses(store) if "gpu_1" not in one.state.name)
    fleet.forget(store, "model", "production", this.state.name)
    report(first)
    assert len(fleet.statuses(store)) == 1, "nothing has changed since the last report"
    monkeypatch.setattr(fleet, "REPORTED_EVERY_S", 0)
    report(first)
    assert len(fleet.statuses(store)) == 2, "it reports once a day"


def test_a_host_of_two_gpus_and_precisions_has_a_line_for_each(
    first: Manifest, publish: Publish, store: EngineStore, capsys: Out
) -> None:
    """One watcher would overwrite what the other reported, and a host that lags would be hidden."""
    machine = "GPU_1.example.org"
    newer = publish(b"second", salt="2", minutes=5)
    promote(store, "model", "production", allow_pending=True)
    fleet.report(store, "model", "production", newer, detect("t4"), machine, "fp16")
    fleet.report(store, "model", "production", newer, detect("l4"), machine)
    lines = found(capsys)
    assert {(one["state"]["host"]["gpu"], one["state"]["precision"]) for one in lines} == {
        ("t4", None),
        ("t4", "fp16"),
        ("l4", None),
    }
    assert sorted(one["verdict"] for one in lines) == ["current", "current", "lags"]
    assert found(capsys, "--forget", machine) == []


def test_a_host_that_is_gone_is_forgotten_by_name(first: Manifest, capsys: Out) -> None:
    assert cli.run(["fleet", "model@production", "--forget", "nobody"]) == StoreMissing.exit_code
    assert "no host 'nobody' has reported" in capsys.readouterr().err
    assert cli.run(["fleet", "--forget", "GPU_1.example.org"]) == UsageError.exit_code
    assert found(capsys, "--forget", "GPU_1.example.org") == []


def test_the_last_report_is_told_by_the_stores_clock(
    first: Manifest, store: EngineStore, capsys: Out
) -> None:
    (one,) = fleet.statuses(store)
    wrong = one.state.model_copy(update={"since": datetime(2099, 1, 1, tzinfo=UTC)})
    store.objects.put(wrong.key, wrong.canonical_json())
    assert "2099" not in said(capsys)
    assert "2099" not in nightly.page(store)


def test_a_host_without_a_channel_to_follow_is_a_mistake(
    publish: Publish, capsys: Out, tmp_path: Path
) -> None:
    publish()
    assert "No host has reported what it runs" in said(capsys)
    assert cli.run(["fleet", "model", "--promote", "newest"]) == UsageError.exit_code
    assert cli.run(["fleet", "model@production", "--promote", "newest"]) == UsageError.exit_code
    assert "no host has reported that it follows this channel" in capsys.readouterr().err
