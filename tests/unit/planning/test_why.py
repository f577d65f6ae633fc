from __future__ import annotations

from enginefarm.planning.why import differences, nearest
from tests.unit.planning.test_plan import KEY_CHANGES, spec_of


def test_names_the_field_and_both_values() -> None:
    changes = differences(spec_of(), KEY_CHANGES["calibration.seed"])  # type: ignore[arg-type]
    assert [(c.field, c.before, c.after) for c in changes] == [
        ("precision.calibration.seed", "0", "1")
    ]


def test_a_profile_that_is_gone_is_said_to_be_absent() -> None:
    changes = differences(spec_of(), KEY_CHANGES["profiles"])  # type: ignore[arg-type]
    assert all(change.after == "absent" for change in changes)
    assert any(change.field.startswith("profiles[1]") for change in changes)


def test_nothing_differs_from_itself() -> None:
    assert differences(spec_of(), spec_of()) == ()


def test_nearest_has_the_fewest_differences() -> None:
    near, far = KEY_CHANGES["builder.sparse_weights"], KEY_CHANGES["gpu"]
    assert nearest(spec_of(), [far, near]) == near  # type: ignore[list-item]
    assert nearest(spec_of(), []) is None
