"""A build that fails leaves its log, and `enginefarm log` prints it."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from enginefarm import cli
from enginefarm.building import engine as engines
from enginefarm.building import native
from enginefarm.building.engine import Job
from enginefarm.building.isolate import LOG_NAME
from enginefarm.errors import BuildCancelled, BuildCrashed, BuildError, StoreMissing, UsageError
from enginefarm.store import failed_builds
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.site import Site
from enginefarm.toolchains import BuildRequest

SAID = "[E] the builder's very last word"


def fails(monkeypatch: pytest.MonkeyPatch, error: BuildError, *, said: str | None = SAID) -> None:
    def build(store: EngineStore, request: BuildRequest, **_: Any) -> None:
        if said is not None:
            (request.work_dir / LOG_NAME).write_text(said)
        raise error

    monkeypatch.setattr(native, "build", build)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.run(["log", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("said", [SAID, None])
def test_the_reason_and_the_log_of_a_failed_build_are_kept(
    site: Site,
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    said: str | None,
) -> None:
    fails(monkeypatch, BuildCrashed("t4/fp16: the builder crashed"), said=said)
    with pytest.raises(BuildCrashed):
        engines.build(site, job)
    gpu = job.spec.gpu.label
    text = printed(capsys, "model", "--gpu", gpu.upper())
    assert text.startswith("BuildCrashed: t4/fp16: the builder crashed")
    assert (said or "left no log") in text


def test_a_build_that_was_cancelled_did_not_fail(
    site: Site, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails(monkeypatch, BuildCancelled("stopped"))
    with pytest.raises(BuildCancelled):
        engines.build(site, job, cancel=threading.Event())
    assert failed_builds.listed(site.store, "model") == []


def test_a_store_that_refuses_the_log_does_not_hide_the_reason(
    site: Site, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise StoreMissing("the bucket is gone")

    monkeypatch.setattr(failed_builds, "record", refuse)
    fails(monkeypatch, BuildCrashed("the reason"))
    with pytest.raises(BuildCrashed, match="the reason"):
        engines.build(site, job)


def test_what_is_not_there_and_what_is_not_clear_are_clear_errors(
    store_environment: EngineStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["log", "model", "--gpu", "t4"]) == StoreMissing.exit_code
    for precision in ("fp16", "int8"):
        failed_builds.record(store_environment, "model", "t4", precision, "0" * 64, b"said")
    assert cli.run(["log", "model", "--gpu", "t4"]) == UsageError.exit_code
    assert "fp16, int8" in capsys.readouterr().err
    assert "said" in printed(capsys, "model", "--gpu", "t4", "--precision", "int8")
