"""Cards on a real S3 server: fresh, old, left behind, and of another version."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from enginefarm.cli.farm import default_name
from enginefarm.farm.worker import card as workers
from enginefarm.farm.worker.card import Card
from enginefarm.store.engine_store import EngineStore


def card(name: str) -> Card:
    return Card(
        name=name,
        role="cross",
        pool="gpu-t4",
        gpu="t4",
        host="h",
        pid=1,
        started_at=datetime.now(UTC),
    )


def test_a_worker_is_online_while_it_runs_and_gone_when_it_stops(store: EngineStore) -> None:
    with workers.registered(store, card("one")):
        assert [(row.card.name, row.online) for row in workers.list_workers(store)] == [
            ("one", True)
        ]
    assert workers.list_workers(store) == ()


def test_a_card_that_was_left_behind_grows_old_and_offers_nothing(store: EngineStore) -> None:
    workers.write(store, card("killed"))
    later = datetime.now(UTC) + timedelta(seconds=workers.SILENT_S + 5)
    (row,) = workers.list_workers(store, now=later)
    assert not row.online
    assert workers.offers([row]) == ()


def test_a_card_that_cannot_be_read_hides_no_other(store: EngineStore) -> None:
    store.objects.put(f"{workers.PREFIX}gpu-t4/odd.json", b'{"version": "of tomorrow"}')
    workers.write(store, card("two"))
    assert [row.card.name for row in workers.list_workers(store)] == ["two"]


def test_two_workers_of_one_machine_have_two_names(monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    for shown in ("0", "1", ""):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
        names.append(default_name("gpu", "h100"))
    assert [name.removeprefix(names[2]) for name in names] == ["-0", "-1", ""]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert default_name("cross", "h100") == names[2]
