"""What a machine offers to build by itself."""

from __future__ import annotations

from typing import Any

import pytest
from sample_manifest import make_manifest
from tiny_models import document

from enginefarm.documents.builder import BuilderOptions
from enginefarm.documents.manifest import GraphVerification
from enginefarm.documents.recipe import Recipe
from enginefarm.documents.spec import BuildSpec, GpuTarget, PrecisionUse, ToolchainId
from enginefarm.host.detect import NvmlGpu
from enginefarm.planning import plan, survey
from enginefarm.toolchains.tensorrt import TensorRT

NATIVE = ToolchainId(name="tensorrt", build="10.16.1.11", cuda="13", os="linux", arch="x86_64")


def offered() -> list[tuple[str | None, list[str]]]:
    return [
        (offer.gpu, [tool.name for tool in offer.toolchains]) for offer in survey.local_offers()
    ]


def test_without_a_gpu_it_cross_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "first_gpu", lambda: None)
    assert offered() == [(None, ["tensorrt-rtx"])]


def test_with_one_it_builds_natively_for_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    card = NvmlGpu(name="NVIDIA L4", compute_capability="8.9", driver="580.1")
    monkeypatch.setattr(survey, "first_gpu", lambda: card)
    assert offered() == [(None, ["tensorrt-rtx"])], "no native toolchain is installed here"
    monkeypatch.setattr(TensorRT, "identity", lambda self: NATIVE)
    assert offered() == [("l4", ["tensorrt"]), (None, ["tensorrt-rtx"])]


def test_a_card_that_no_row_knows_offers_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    card = NvmlGpu(name="NVIDIA Unheard-of 9000", compute_capability="9.9", driver="580.1")
    monkeypatch.setattr(survey, "first_gpu", lambda: card)
    monkeypatch.setattr(TensorRT, "identity", lambda self: NATIVE)
    assert offered() == [(None, ["tensorrt-rtx"])]


def standing(
    figures: dict[str, Any], asked: str = "a" * 64, **budget: float
) -> survey.PlannedBuild:
    """An engine that is there, with these figures, for a recipe with this budget."""
    manifest = make_manifest()
    output = manifest.verification.outputs[0].model_copy(update=figures)
    verification = manifest.verification.model_copy(update={"outputs": (output,), "asked": asked})
    recipe = Recipe.model_validate(document(accuracy={"fp16": budget}))
    target = plan.BuildTarget(gpu="t4", precision="fp16", toolchain=NATIVE, pool="cpu")
    there = manifest.model_copy(update={"verification": verification, "recipe": "small"})
    return survey._standing(recipe, target, there.spec, there, "a" * 64)


def test_an_engine_counts_as_long_as_the_budget_of_today_lets_it() -> None:
    figures = {"cosine": 0.9995, "relative_l2": 0.005}
    assert standing(figures).cached
    stricter = standing(figures, min_cosine=0.9999)
    assert not stricter.cached
    assert stricter.over_budget
    assert "y: cosine 0.9995 is below 0.9999" in stricter.reason


def test_a_budget_in_part_keeps_the_defaults_for_the_rest() -> None:
    found = standing({"cosine": 0.99, "relative_l2": 0.019}, max_relative_l2=0.5)
    assert "cosine 0.99 is below 0.999" in found.reason


def test_figures_that_are_not_there_are_measured() -> None:
    figures = {"cosine": 1.0, "relative_l2": 0.0}
    asks = standing(figures, min_top1_agreement=0.9)
    assert not asks.cached
    assert not asks.over_budget
    assert "the budget needs top-1 agreement" in asks.reason
    other_data = standing(figures, asked="b" * 64)
    assert not other_data.cached
    assert "its verification runs again" in other_data.reason
    assert not GraphVerification(samples=1, runtime="ort", outputs=()).asked


def test_what_cannot_be_built_is_said_of_its_row_alone() -> None:
    model = survey.UNKNOWN_MODEL.model_copy(update={"operators": {"MatMul": "mm"}})
    rtx = NATIVE.model_copy(update={"name": "tensorrt-rtx"})
    for gpu, capability, impossible in (("t4", "7.5", True), ("l4", "8.9", False)):
        target = plan.BuildTarget(gpu=gpu, precision="fp32", toolchain=rtx, pool="cpu")
        spec = BuildSpec(
            onnx_digest="0" * 64,
            exporter=model.exporter,
            slimmer=model.slimmer,
            precision=PrecisionUse(name="fp32", tools=()),
            profiles=(),
            gpu=GpuTarget(label=gpu, compute_capability=capability),
            toolchain=rtx,
            builder=BuilderOptions(),
        )
        row = survey.PlannedBuild(target=target, spec=spec, cached=False, reason="new")
        told = survey._possible(row, model)
        assert told.impossible == impossible
        assert ("mm" in told.reason) == impossible
