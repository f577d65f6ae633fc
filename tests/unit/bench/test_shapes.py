from __future__ import annotations

import numpy as np

from enginefarm.bench.shapes import points
from enginefarm.documents.spec import MinOptMax, ShapeProfile
from enginefarm.graph.samples.feeds import shaped

IMAGES = ShapeProfile(
    name="default",
    shapes={"x": MinOptMax(min=(1, 3, 4, 4), opt=(8, 3, 4, 4), max=(12, 3, 4, 4))},
)
STATIC = ShapeProfile(name="static", shapes={"x": MinOptMax(min=(2, 3), opt=(2, 3), max=(2, 3))})


def test_every_profiles_opt_comes_first_and_then_the_sweep() -> None:
    found = points([IMAGES])
    assert [point.batch for point in found] == [8, 1, 2, 4, 12]
    assert found[0].text == "x:8x3x4x4"
    assert {point.profile for point in found} == {0}


def test_a_static_profile_has_one_point() -> None:
    found = points([IMAGES, STATIC], batch_sweep=True)
    assert [(p.profile, p.profile_name, p.batch) for p in found if p.profile == 1] == [
        (1, "static", 2)
    ]
    assert len(points([IMAGES, STATIC], batch_sweep=False)) == 2


def test_feeds_are_real_values_repeated_and_cut() -> None:
    image = np.arange(2 * 3, dtype=np.float32).reshape(2, 3)
    grown = shaped({"x": image}, {"x": (5, 2)})["x"]
    assert grown.tolist() == [[0, 1], [3, 4], [0, 1], [3, 4], [0, 1]]
    assert grown.flags["C_CONTIGUOUS"]
