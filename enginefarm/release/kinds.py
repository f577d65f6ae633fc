"""The kinds of small documents in the store: how each is read, and what writes it again."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from enginefarm.pulling import fleet
from enginefarm.store import budgets, quarantine
from enginefarm.store.engine_store import EngineStore
from enginefarm.tables import layers, rules, speeds


def _quarantined(store: EngineStore, key: str) -> None:
    quarantine.quarantined(store, _stem(key, quarantine.QUARANTINE))


def _budgets(store: EngineStore, key: str) -> None:
    budgets.recorded(store, _stem(key, budgets.BUDGETS))


def _rules(store: EngineStore, key: str) -> None:
    rules.recorded(store, _stem(key, rules.RULES))


def _speeds(store: EngineStore, key: str) -> None:
    recipe, _, gpu = _stem(key, speeds.PREFIX).partition("/")
    speeds.read(store.objects, recipe, gpu)


def _layers(store: EngineStore, key: str) -> None:
    layers.read_times(store, key)


def _stem(key: str, prefix: str) -> str:
    return key.removeprefix(prefix).removesuffix(".json")


class Kind(NamedTuple):
    """Documents of one kind. made_again: what writes a deleted one again; empty if nothing does, so
    that a person has to look at a damaged one."""

    prefix: str
    read: Callable[[EngineStore, str], object]
    made_again: str


KINDS = (
    Kind(quarantine.QUARANTINE, _quarantined, ""),
    Kind(budgets.BUDGETS, _budgets, "the next build of the recipe"),
    Kind(rules.RULES, _rules, "the next build of the recipe"),
    Kind(speeds.PREFIX, _speeds, "the next measurement"),
    Kind(layers.PREFIX, _layers, "the next profile"),
    Kind(fleet.PREFIX, fleet.state_of, "its host, at its next switch"),
)
