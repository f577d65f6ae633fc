"""pycuda's events and PyTorch's, over the very same work."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import pytest

from enginefarm.runtime import Engine

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", ["conv", "resnet50-fp16", "resnet50-fp32"])
def test_two_libraries_time_the_same_work_alike(
    engine: Callable[[str], Engine], name: str, record_property: Callable[[str, object], None]
) -> None:
    import torch

    loaded = engine(name)
    shapes = loaded.profile_shapes(0)
    rng = np.random.default_rng(0)
    feeds: dict[str, Any] = {
        key: rng.standard_normal(value.opt).astype(np.float32) for key, value in shapes.items()
    }
    ours: list[float] = []
    theirs: list[float] = []
    with loaded.session(0) as session:
        session.bind(feeds)
        session.copy_in()
        stream = torch.cuda.ExternalStream(session.stream.handle)
        mine = [loaded.cuda.Event(), loaded.cuda.Event()]
        others = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        for iteration in range(220):
            others[0].record(stream)
            mine[0].record(session.stream)
            for _ in range(10):
                session.compute()
            mine[1].record(session.stream)
            others[1].record(stream)
            session.stream.synchronize()
            if iteration >= 20:
                ours.append(mine[1].time_since(mine[0]))
                theirs.append(others[0].elapsed_time(others[1]))
    ratio = median(ours) / median(theirs)
    print(f"{name}: pycuda {median(ours):.4f} ms, torch {median(theirs):.4f} ms, {ratio:.4f}")
    record_property("ratio", ratio)
    # torch's pair encloses ours, so it can only be a little longer.
    assert 0.97 < ratio <= 1.005
