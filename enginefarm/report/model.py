"""The data of the report: cells of the matrix, models, and timings over the nights."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from enginefarm.documents.layers import Layers
from enginefarm.documents.manifest import Manifest
from enginefarm.pulling.fleet import HostStatus
from enginefarm.tables.layer_diff import LayerDiff
from enginefarm.tables.regression import State
from enginefarm.tables.rows import BenchmarkRow

CellState = Literal["verified", "built", "missing", "stale", "failed", "skipped"]


@dataclass(frozen=True)
class StateStyle:
    """How a state looks: never by color alone."""

    glyph: str
    meaning: str


STATES: dict[CellState, StateStyle] = {
    "verified": StateStyle("✓", "built, and verified on its GPU"),
    "built": StateStyle("●", "built from a verified graph; not verified on its GPU yet"),
    "missing": StateStyle("○", "in a recipe, but not built yet"),
    "stale": StateStyle("↻", "built from inputs that have changed since; it will be rebuilt"),
    "failed": StateStyle("✕", "the build or its verification failed"),
    "skipped": StateStyle("–", "cannot be built, and the recipe allows that"),
}


@dataclass(frozen=True)
class WantedCell:
    """What a recipe asks for today."""

    recipe: str
    gpu: str
    precision: str
    spec_digest: str | None = None
    skip_reason: str = ""


@dataclass(frozen=True)
class Cell:
    """One model × GPU × precision."""

    recipe: str
    gpu: str
    precision: str
    state: CellState
    reason: str = ""
    row: BenchmarkRow | None = None
    """The engine's newest figures; None where there is no engine."""


Engines = tuple[str | None, str | None]
"""Spec digests of the night before the newest, and of the newest; None: the row has none."""


@dataclass(frozen=True)
class HistoryLine:
    """One cell's timings over the nights, each held against the nights before it."""

    host: str
    runtime: str
    precision: str
    batch: int
    points: tuple[tuple[dt.date, float, State], ...]
    engines: Engines = (None, None)

    @property
    def name(self) -> str:
        return f"{self.host} · {self.runtime} · {self.precision}"

    @property
    def usual_ms(self) -> float | None:
        """Median of the nights before the newest."""
        before = [latency for _, latency, state in self.points[:-1] if state != "unstable"]
        return median(before) if before else None

    @property
    def regressed(self) -> bool:
        """Whether the newest verdict says slower."""
        return self.points[-1][2] == "slower"


@dataclass(frozen=True)
class ModelSection:
    recipe: str
    cells: dict[tuple[str, str], Cell]
    """By (GPU, precision)."""
    latest: tuple[BenchmarkRow, ...]
    """The newest measurement of every host × runtime × precision × profile × batch."""
    lines: tuple[HistoryLine, ...]

    @property
    def slug(self) -> str:
        return f"model-{self.recipe}"

    @property
    def engines(self) -> list[Cell]:
        return [cell for cell in self.cells.values() if cell.row is not None]

    @property
    def regressions(self) -> list[HistoryLine]:
        return [line for line in self.lines if line.regressed]

    @property
    def failures(self) -> dict[str, list[Cell]]:
        """Failed cells by reason: one cause often fails on every GPU."""
        found: dict[str, list[Cell]] = {}
        for cell in self.cells.values():
            if cell.state == "failed":
                found.setdefault(cell.reason, []).append(cell)
        return found

    @property
    def attention(self) -> bool:
        return bool(self.regressions) or any(cell.state == "failed" for cell in self.cells.values())


@dataclass(frozen=True)
class ReportData:
    title: str
    store: str
    generated_at: dt.datetime
    night: dt.date | None
    gpus: tuple[str, ...]
    precisions: tuple[str, ...]
    models: tuple[ModelSection, ...]
    layers: dict[Engines, LayerDiff | str] = field(default_factory=dict[Engines, "LayerDiff | str"])
    """Under each slower line: its two engines layer by layer, or why that is not known."""
    fleet: tuple[HostStatus, ...] = ()
    manifests: dict[str, Manifest] = field(default_factory=dict[str, "Manifest"])
    """By spec digest: what the page of an engine says about its origin."""
    engine_layers: dict[str, Layers | str] = field(default_factory=dict[str, "Layers | str"])
    """By spec digest: an engine's layers, or why they are not known."""
    notes: tuple[str, ...] = field(default=())
    """Where the figures come from: machine, versions."""

    @property
    def counts(self) -> dict[CellState, int]:
        found = dict.fromkeys(STATES, 0)
        for model in self.models:
            for cell in model.cells.values():
                found[cell.state] += 1
        return found
