"""Verification on the device, parent and fresh process together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_plans import LARGE, SMALL

from enginefarm.documents.thresholds import Budget
from enginefarm.errors import DriverTooOld
from enginefarm.run.verify import DeviceRequest, verify_on_device

Plan = Callable[..., Path]
Reference = Callable[..., Path]


def request(plan: Path, reference: Path, **more: Any) -> DeviceRequest:
    fields = {"toolchain": "tensorrt", "profiles": (SMALL, LARGE), "budget": Budget(), **more}
    return DeviceRequest(plan=plan, reference=reference, **fields)


def test_an_engine_that_agrees_passes(plan: Plan, reference: Reference, tmp_path: Path) -> None:
    verdict = verify_on_device(request(plan(), reference()), tmp_path / "w")
    found = verdict.verification
    assert (found.status, found.gpu, found.reason) == ("passed", "Fake A100", "")
    assert [(o.output, round(o.cosine, 6)) for o in found.outputs] == [("y", 1.0)]
    assert "10 samples" in verdict.log.read_text(), "both batches, each on its profile"


def test_one_that_does_not_says_by_how_much(
    plan: Plan, reference: Reference, tmp_path: Path
) -> None:
    found = verify_on_device(request(plan(), reference(3)), tmp_path / "w").verification
    assert found.status == "failed"
    assert "relative" in found.reason


def test_no_profile_for_the_reference_is_a_failure(
    plan: Plan, reference: Reference, tmp_path: Path
) -> None:
    asked = request(plan(), reference(), profiles=(SMALL,))
    found = verify_on_device(asked, tmp_path / "w").verification
    assert found.status == "failed"
    assert "no profile takes the reference's shapes {'x': (8, 4)}" in found.reason


def test_an_old_driver_says_nothing_of_the_engine(
    plan: Plan, reference: Reference, tmp_path: Path
) -> None:
    with pytest.raises(DriverTooOld):
        verify_on_device(request(plan(), reference(), cuda_major=14), tmp_path / "w")
