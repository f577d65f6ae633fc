"""Verification in a fresh process, on a real GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginefarm.documents.comparing import ComparisonRules
from enginefarm.documents.spec import MinOptMax, ShapeProfile
from enginefarm.documents.thresholds import DEFAULT_BUDGETS
from enginefarm.errors import DriverTooOld
from enginefarm.run.verify import DeviceRequest, verify_on_device

pytestmark = pytest.mark.gpu

IMAGES = MinOptMax(min=(1, 3, 224, 224), opt=(8, 3, 224, 224), max=(32, 3, 224, 224))


def request(plans: Path, models: Path, name: str, **more: Any) -> DeviceRequest:
    model, _, precision = name.partition("-")
    return DeviceRequest(
        **{
            "plan": plans / f"{name}.plan",
            "reference": models / f"{model}.npz",
            "toolchain": "tensorrt",
            "profiles": (ShapeProfile(name="default", shapes={"images": IMAGES}),),
            "budget": DEFAULT_BUDGETS["fp16" if precision == "fp32" else precision],
            "comparing": ComparisonRules(class_scores=("scores",)),
            **more,
        }
    )


def test_a_good_engine_passes(plans: Path, models: Path, tmp_path: Path) -> None:
    name = "efficientnet_lite0-fp16"
    verdict = verify_on_device(request(plans, models, name), tmp_path).verification
    print(name, verdict.outputs)
    assert verdict.status == "passed", verdict.reason
    assert verdict.gpu
    assert verdict.driver
    assert verdict.outputs[0].cosine > 0.999
    assert verdict.outputs[0].top1_agreement is not None


def test_an_engine_of_another_model_fails_and_says_by_how_much(
    plans: Path, models: Path, tmp_path: Path
) -> None:
    wrong = request(plans, models, "efficientnet_lite0-fp16", plan=plans / "other.plan")
    verdict = verify_on_device(wrong, tmp_path)
    assert verdict.verification.status == "failed"
    assert "cosine" in verdict.verification.reason
    assert verdict.log.read_text()


def test_nan_outputs_fail(plans: Path, models: Path, tmp_path: Path) -> None:
    # A reshape passes NaN on; an activation may swallow it.
    x = np.arange(8, dtype=np.float32)
    arrays = {
        "0000/input/x": np.where(x == 3, np.float32("nan"), x),
        "0000/input/shape": np.array([2, 4], np.int32),
        "0000/output/y": x.reshape(2, 4),
    }
    np.savez(tmp_path / "nan.npz", **arrays)
    whole = ShapeProfile(name="default", shapes={"x": MinOptMax(min=(8,), opt=(8,), max=(8,))})
    asked = request(
        plans,
        models,
        "efficientnet_lite0-fp16",
        plan=plans / "reshape.plan",
        reference=tmp_path / "nan.npz",
        profiles=(whole,),
    )
    verdict = verify_on_device(asked, tmp_path / "w").verification
    assert verdict.status == "failed"
    assert "NaN" in verdict.reason


def test_a_plan_that_does_not_load_fails(plans: Path, models: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.plan").write_bytes((plans / "conv.plan").read_bytes()[:1000])
    asked = request(plans, models, "efficientnet_lite0-fp16", plan=tmp_path / "broken.plan")
    verdict = verify_on_device(asked, tmp_path / "w").verification
    assert verdict.status == "failed"
    assert "cannot be loaded" in verdict.reason


def test_a_driver_too_old_is_the_hosts_fault(plans: Path, models: Path, tmp_path: Path) -> None:
    asked = request(plans, models, "efficientnet_lite0-fp16", cuda_major=99)
    with pytest.raises(DriverTooOld, match="CUDA 99"):
        verify_on_device(asked, tmp_path)
