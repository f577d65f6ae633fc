"""What a machine offers to build by itself."""

from __future__ import annotations

import pytest

from enginefarm.documents.spec import ToolchainId
from enginefarm.host.detect import NvmlGpu
from enginefarm.planning import survey
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
