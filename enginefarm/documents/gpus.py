"""The GPU table: rows of gpus.toml."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import NamedTuple

from enginefarm.errors import GpuError, did_you_mean
from enginefarm.names import PrecisionName

PART_OF_A_CARD = re.compile(r"\bMIG\b|\bvGPU\b|^GRID\b|-\d+[ABCQ]\b")
"""NVML's names of MIG slices and of virtual GPUs: `GRID T4-8C`, `NVIDIA A100-7-40C`."""

ANOTHER_CARD = re.compile(r"\b(D|Ti|SUPER|Laptop|Mobile|Max-Q)\b", re.IGNORECASE)
"""What makes `RTX 4090 D` and `RTX 3090 Ti` cards of their own, with other cores and memory."""


class Gpu(NamedTuple):
    """One row: what a label stands for. names: regular expressions on NVML's device name."""

    label: str
    names: list[str]
    compute_capability: str
    memory_gib: float
    bandwidth_gb_s: float
    precisions: list[PrecisionName]

    @property
    def work_pool(self) -> str:
        return f"gpu-{self.label}"

    def matches(self, nvml_name: str) -> bool:
        """Whether that is the name of this card, whole, and not of a slice or a variant."""
        if PART_OF_A_CARD.search(nvml_name) or ANOTHER_CARD.search(nvml_name):
            return False
        return any(re.search(pattern, nvml_name) for pattern in self.names)

    def refuses(self, precision: str) -> str | None:
        """Why this GPU cannot have that precision; None when it can."""
        if precision in self.precisions:
            return None
        return (
            f"{self.label} (compute capability {self.compute_capability}) has no {precision} "
            f"tensor cores; it has {', '.join(self.precisions)}"
        )


@cache
def table() -> dict[str, Gpu]:
    """Every row, by label, in the file's order. Not checked: the table is ours, and tested."""
    rows = tomllib.loads(Path(__file__).with_name("gpus.toml").read_text("utf-8"))
    return {label: Gpu(label=label, **row) for label, row in rows.items()}


def gpu(label: str) -> Gpu:
    """The row of that label.

    Raises: GpuError, naming the labels of the table.
    """
    known = table()
    if label not in known:
        raise GpuError(
            f"gpus: no GPU is labeled {label!r}",
            fix=f"{did_you_mean(label, known)} The labels are {', '.join(known)}; to add one, add "
            "a table to gpus.toml".lstrip(),
        )
    return known[label]


def has_precision(compute_capability: str, precision: str) -> bool:
    """Whether every GPU of that compute capability in the table has the precision."""
    rows = [row for row in table().values() if row.compute_capability == compute_capability]
    return bool(rows) and all(row.refuses(precision) is None for row in rows)


def by_nvml_name(name: str) -> Gpu | None:
    """The row that an NVML device name belongs to; None for a card not in the table."""
    return next((row for row in table().values() if row.matches(name)), None)
