"""The profile of an engine's layers, parent and fresh process together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from enginefarm.bench.layer_times import LayerTimesRequest, profile_layers

Make = Callable[..., Path]


def test_each_layer_has_its_median(plan: Make, reference: Make) -> None:
    found = profile_layers(
        LayerTimesRequest(
            plan=plan(),
            reference=reference(),
            toolchain="tensorrt",
            profile=1,
            shapes={"x": (8, 4)},
            passes=3,
        )
    )
    assert found.ms == {"add0": 0.25}, "the fake profiler's figure of its only layer"
    assert (found.passes, found.gpu_name) == (3, "Fake A100")
