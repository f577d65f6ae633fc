"""The kinds of small documents in the store: how each is read, and what writes it again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import NamedTuple

from enginefarm.documents.thresholds import Regression
from enginefarm.pulling import fleet
from enginefarm.schema import Frozen
from enginefarm.store import budgets, quarantine
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.reading import read
from enginefarm.tables import layers, rules, speeds

Reader = Callable[[EngineStore, str], object]


def _quarantined(store: EngineStore, key: str) -> object:
    return quarantine.quarantined(store, PurePosixPath(key).stem)


def _of(model: type[Frozen]) -> Reader:
    return lambda store, key: read(store.objects, key, model)


class Kind(NamedTuple):
    """Documents of one kind. made_again: what writes a deleted one again; empty if nothing does, so
    that a person has to look at a damaged one."""

    prefix: str
    read: Reader
    made_again: str


KINDS = (
    Kind(quarantine.QUARANTINE, _quarantined, ""),
    Kind(budgets.BUDGETS, _of(budgets.Budgets), "the next build of the recipe"),
    Kind(rules.RULES, _of(Regression), "the next build of the recipe"),
    Kind(speeds.PREFIX, _of(speeds.Speeds), "the next measurement"),
    Kind(layers.PREFIX, _of(layers.LayerTimes), "the next profile"),
    Kind(fleet.PREFIX, fleet.state_of, "its host, at its next switch"),
)
