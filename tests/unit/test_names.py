"""A precision or a toolchain that was added in one place is there in all of them."""

from __future__ import annotations

from typing import get_args

from enginefarm import names
from enginefarm.documents.thresholds import DEFAULT_BUDGETS
from enginefarm.graph.precisions import PRECISIONS, precision
from enginefarm.tables.rows import Runtime
from enginefarm.toolchains import TOOLCHAINS, toolchain


def test_every_precision_has_its_file_budget_and_place() -> None:
    for known in (names.PRECISION_ORDER, PRECISIONS, DEFAULT_BUDGETS):
        assert sorted(known) == sorted(names.PRECISION_NAMES)
    assert all(precision(name).name == name for name in PRECISIONS)


def test_every_toolchain_has_its_file_and_what_loads_its_plans() -> None:
    for known in (names.RUNTIME_OF, TOOLCHAINS):
        assert sorted(known) == sorted(get_args(names.ToolchainName))
    assert all(toolchain(name).name == name for name in TOOLCHAINS)
    assert set(names.RUNTIME_OF.values()) <= set(get_args(Runtime))
