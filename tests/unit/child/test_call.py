"""A function in a child process: its death is one error here."""

from __future__ import annotations

import threading
import time

import pytest

from enginefarm.child import call as native
from enginefarm.child.cancellation import CANCEL
from enginefarm.errors import BuildCancelled, PrecisionError, RecipeError


def call(function: str, request: str) -> str:
    return native.call(function, request, error=PrecisionError, what="the test")


def test_the_answer_comes_back() -> None:
    assert call("builtins:str", "é {}") == "é {}"


def test_a_segmentation_fault_is_an_error_with_the_signal_and_the_place() -> None:
    with pytest.raises(PrecisionError, match="the test: the process that ran it died of SIGSEGV"):
        call("builtins:exec", "import faulthandler; faulthandler._sigsegv()")


def test_an_error_of_ours_keeps_its_class_and_words() -> None:
    with pytest.raises(RecipeError, match="2 mistakes"):
        call(
            "enginefarm.recipes.file:parse",
            "bogus: 1\nname: x\nsource: {kind: onnx, path: a}\ninputs: [{name: x, shape: [1]}]\n",
        )


def test_any_other_exception_is_one_error() -> None:
    with pytest.raises(PrecisionError, match="json:loads failed") as caught:
        call("json:loads", "[")
    assert "JSONDecodeError" in caught.value.why


def test_the_child_has_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    assert call("os.path:expandvars", "$AWS_SECRET_ACCESS_KEY") == "$AWS_SECRET_ACCESS_KEY"


def test_it_is_killed_when_the_process_is_asked_to_stop() -> None:
    timer = threading.Timer(1.0, CANCEL.set)
    started = time.monotonic()
    timer.start()
    try:
        with pytest.raises(BuildCancelled, match="the test: cancelled"):
            call("builtins:exec", "import time; time.sleep(60)")
    finally:
        timer.join()
        CANCEL.clear()
    assert time.monotonic() - started < 20
