"""The tree in errors.py: one exit code a class, documented, and it survives a process."""

from __future__ import annotations

import pickle
import re

import pytest

from enginefarm import errors

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, errors.EnginefarmError)
]


def test_every_class_has_an_exit_code_of_its_own() -> None:
    codes = [kind.exit_code for kind in CLASSES]
    assert len(set(codes)) == len(codes)


def test_the_tree_at_the_top_is_the_tree_below() -> None:
    drawn = dict(re.findall(r"(\w+)\s{2,}(\d+)", errors.__doc__ or ""))
    assert {name: int(code) for name, code in drawn.items()} == {
        kind.__name__: kind.exit_code for kind in CLASSES
    }


def test_only_an_unavailable_store_is_worth_a_retry() -> None:
    assert [kind for kind in CLASSES if kind.transient] == [errors.StoreUnavailable]


@pytest.mark.parametrize("kind", CLASSES)
def test_what_why_and_fix_survive_pickling(kind: type[errors.EnginefarmError]) -> None:
    error = kind("the field", why="a cause", fix="a remedy")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == "the field\n  why: a cause\n  fix: a remedy"
