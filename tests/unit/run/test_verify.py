"""Verification on the device, as far as a machine without a GPU goes: what the parent does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from enginefarm.documents.spec import MinOptMax, ShapeProfile
from enginefarm.documents.thresholds import Budget
from enginefarm.errors import HostError
from enginefarm.run import verify as device_verify
from enginefarm.run.verify import DeviceRequest, profile_for, verify_on_device

SMALL = ShapeProfile(name="small", shapes={"x": MinOptMax(min=(1, 3), opt=(2, 3), max=(4, 3))})
LARGE = ShapeProfile(name="large", shapes={"x": MinOptMax(min=(4, 3), opt=(8, 3), max=(64, 3))})


def request(tmp_path: Path) -> DeviceRequest:
    return DeviceRequest(
        plan=tmp_path / "engine.plan",
        reference=tmp_path / "reference.npz",
        toolchain="tensorrt",
        profiles=(SMALL, LARGE),
        budget=Budget(),
    )


def test_the_first_profile_that_takes_the_shapes() -> None:
    assert profile_for({"x": (4, 3)}, (SMALL, LARGE)) == 0
    assert profile_for({"x": (5, 3)}, (SMALL, LARGE)) == 1
    assert profile_for({"x": (65, 3)}, (SMALL, LARGE)) is None
    assert profile_for({"x": (5, 3, 1)}, (SMALL, LARGE)) is None


def test_a_host_without_a_gpu_says_nothing_of_the_engine(tmp_path: Path) -> None:
    with pytest.raises(HostError):
        verify_on_device(request(tmp_path), tmp_path / "w")


def fake_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str) -> None:
    """Another program in place of Python: what the parent makes of how it ends is real."""
    script = tmp_path / "child.sh"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))


def test_an_engine_that_kills_its_process_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_child(monkeypatch, tmp_path, "echo last words; kill -SEGV $$")
    verdict = verify_on_device(request(tmp_path), tmp_path / "w")
    assert verdict.verification.status == "failed"
    assert "SIGSEGV" in verdict.verification.reason
    assert "last words" in verdict.log.read_text()


def test_an_engine_that_never_ends_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_child(monkeypatch, tmp_path, "exec sleep 60")
    verdict = verify_on_device(request(tmp_path), tmp_path / "w", timeout_s=0.3)
    assert verdict.verification.status == "failed"
    assert "still running" in verdict.verification.reason


def test_an_engine_error_is_a_failure_and_keeps_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = '{"kind": "EngineRunError", "what": "cut short", "why": "a reason", "fix": ""}'
    fake_child(monkeypatch, tmp_path, f"echo '{answer}' > \"$5/error.json\"; exit 1")
    verification = verify_on_device(request(tmp_path), tmp_path / "w").verification
    assert verification.reason == "cut short; a reason"


def test_the_process_gets_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-for-the-child")
    fake_child(monkeypatch, tmp_path, "env")
    log = verify_on_device(request(tmp_path), tmp_path / "w").log.read_text()
    assert "HOME=" in log
    assert "not-for-the-child" not in log
    assert device_verify.LOG_NAME
