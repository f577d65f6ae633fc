"""Why an engine would be built again: the field-by-field difference from the nearest spec."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from enginefarm.documents.spec import BuildSpec
from enginefarm.schema import Frozen


class FieldChange(Frozen):
    field: str
    before: str
    after: str


def differences(before: BuildSpec, after: BuildSpec) -> tuple[FieldChange, ...]:
    """Every leaf that differs, by its path: `precision.calibration.seed`."""
    old, new = _leaves(before.model_dump(mode="json")), _leaves(after.model_dump(mode="json"))
    return tuple(
        FieldChange(field=field, before=old.get(field, "absent"), after=new.get(field, "absent"))
        for field in sorted(old.keys() | new.keys())
        if old.get(field) != new.get(field)
    )


def nearest(spec: BuildSpec, others: Iterable[BuildSpec]) -> BuildSpec | None:
    """The spec with the fewest differing fields; ties go to the lower digest."""
    return min(
        others, key=lambda other: (len(differences(other, spec)), other.digest), default=None
    )


def _leaves(value: Any, path: str = "") -> dict[str, str]:
    leaves: dict[str, str] = {}
    if isinstance(value, dict):
        for key, child in cast("dict[str, Any]", value).items():
            leaves.update(_leaves(child, f"{path}.{key}" if path else key))
    elif isinstance(value, list):
        for index, child in enumerate(cast("list[Any]", value)):
            leaves.update(_leaves(child, f"{path}[{index}]"))
    else:
        leaves[path] = str(value)
    return leaves
