"""pycuda's events and another library's, over the very same work."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import other_library
import pytest

from enginefarm.run.engine import Engine

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", ["conv", "efficientnet_lite0-fp16", "resnet50-fp16"])
def test_two_libraries_time_the_same_work_alike(
    engine: Callable[[str], Engine], name: str, record_property: Callable[[str, object], None]
) -> None:
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
        mine = [loaded.cuda.Event(), loaded.cuda.Event()]
        watch = other_library.Stopwatch(session.stream.handle)
        for iteration in range(220):
            watch.record(0)
            mine[0].record(session.stream)
            for _ in range(10):
                session.compute()
            mine[1].record(session.stream)
            watch.record(1)
            session.stream.synchronize()
            if iteration >= 20:
                ours.append(mine[1].time_since(mine[0]))
                theirs.append(watch.ms())
    ratio = median(ours) / median(theirs)
    print(
        f"{name}: pycuda {median(ours):.4f} ms, {other_library.NAME} {median(theirs):.4f} ms, "
        f"ratio {ratio:.5f}"
    )
    record_property("ratio", ratio)
    # the other pair encloses ours, so it can only be a little longer.
    assert 0.97 < ratio <= 1.005
