"""The tree in errors.py: one exit code a class, documented, and it survives a process."""

from __future__ import annotations

import pickle
import re

import pytest

from enginefarm import errors
from enginefarm.documents import written_errors
from enginefarm.planning.outcome import of_error
from flows.build_model import EnginesMissing
from tasks.outcomes import EngineMissing

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


def test_a_name_of_megabytes_does_not_fill_the_screen() -> None:
    error = errors.SourceError(f"node {'n' * 10_000_000}", why=f"short\n{'w' * 3000}\nshort")
    assert len(str(error)) < 5000
    assert error.what.startswith("node nnn")
    assert error.what.endswith("n… (9,998,105 more)")
    assert error.why.splitlines()[::2] == ["short", "short"]
    assert error.args == (error.what,)
    again = written_errors.of_fields(error.fields(), errors.BuildError)
    assert again.fields() == error.fields()  # it is cut once, however far it goes


@pytest.mark.parametrize("kind", CLASSES)
def test_what_why_and_fix_survive_pickling(kind: type[errors.EnginefarmError]) -> None:
    error = kind("the field", why="a cause", fix="a remedy")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == "the field\n  why: a cause\n  fix: a remedy"


def test_an_error_with_arguments_of_its_own_survives_pickling() -> None:
    """Both are carried in states by Prefect, with what they hold."""
    outcome = of_error("tiny", "t4", "fp16", errors.ParseError("node a"))
    missing = pickle.loads(pickle.dumps(EngineMissing(outcome)))
    assert type(missing) is EngineMissing
    assert missing.outcome == outcome
    several = pickle.loads(pickle.dumps(EnginesMissing("tiny", [outcome])))
    assert several.outcomes == [outcome]
    assert str(several) == str(EnginesMissing("tiny", [outcome]))


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_comes_back_from_its_fields_and_from_its_text(
    kind: type[errors.EnginefarmError],
) -> None:
    error = kind("the field", why="a cause\n       of two lines", fix="a remedy")
    for copy in (
        written_errors.of_fields(error.fields(), errors.FarmError),
        written_errors.of_text(kind.__name__, str(error), errors.FarmError),
    ):
        assert type(copy) is kind
        assert copy.fields() == error.fields()


def test_a_name_of_no_error_is_the_fallback() -> None:
    for name in ("", "dict", "re", "__builtins__", "Nothing"):
        made = written_errors.of_text(name, "crashed", errors.FarmError)
        assert type(made) is errors.FarmError
        assert made.what == "crashed"
