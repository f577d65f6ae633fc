"""Hosts that say what they run, against what their channel names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enginefarm import cli
from enginefarm.cli.pull import fleet_reporter
from enginefarm.documents.manifest import Manifest
from enginefarm.errors import UsageError
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
    assert "1 hosts, 1 lagging" in said(capsys)
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


def test_watch_reports_a_host_only_if_it_follows_a_channel(
    first: Manifest, store: EngineStore, capsys: Out
) -> None:
    report = fleet_reporter("model@production", "t4", None, offline=False)
    assert report is not None
    report(first)
    assert len(fleet.states(store)) == 2, "gpu-1, and this machine"
    assert fleet_reporter("model", "t4", None, offline=False) is None
    assert fleet_reporter("model@production", "t4", None, offline=True) is None


def test_a_host_without_a_channel_to_follow_is_a_mistake(
    publish: Publish, capsys: Out, tmp_path: Path
) -> None:
    publish()
    assert "No host has reported what it runs" in said(capsys)
    assert cli.run(["fleet", "model", "--promote", "newest"]) == UsageError.exit_code
    assert cli.run(["fleet", "model@production", "--promote", "newest"]) == UsageError.exit_code
    assert "no host has reported that it follows this channel" in capsys.readouterr().err
