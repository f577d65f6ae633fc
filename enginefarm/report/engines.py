"""The page of one engine: its lineage, figures, layers, and the commands to get it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from enginefarm.documents import facts
from enginefarm.documents.layers import Layer, Layers
from enginefarm.documents.manifest import Manifest
from enginefarm.names import RUNTIMES
from enginefarm.report.model import Cell, ModelSection
from enginefarm.report.svg import number, power
from enginefarm.tables.rows import BenchmarkRow

LAYERS_SHOWN = 12


@dataclass(frozen=True)
class Fact:
    """label, and what is shown. value: the number behind it, where two engines are compared;
    lower: whether less of it is better, None where neither is."""

    label: str
    text: str
    value: float | None = None
    lower: bool | None = None


@dataclass(frozen=True)
class EnginePage:
    """lineage, figures: in the order in which they are shown. layers: a table's rows, the costliest
    first; layer_words: what all of them are, or why they are not known."""

    slug: str
    cell: Cell
    lineage: tuple[Fact, ...]
    figures: tuple[Fact, ...]
    timings: tuple[BenchmarkRow, ...]
    layer_words: str
    layers: tuple[tuple[str, ...], ...]
    commands: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.cell.recipe} · {self.cell.gpu} · {self.cell.precision}"


def slug_of(cell: Cell) -> str:
    """The anchor of a cell's engine: one engine may stand under several names and GPUs."""
    row = cell.row
    digest = (row.spec_digest or row.engine_digest or "") if row else ""
    return f"engine-{cell.recipe}-{cell.gpu}-{cell.precision}-{digest[: facts.DIGITS]}"


def pages(
    models: Iterable[ModelSection],
    manifests: Mapping[str, Manifest],
    layers: Mapping[str, Layers | str],
) -> tuple[EnginePage, ...]:
    """A page for each cell that has an engine. manifests, layers: by spec digest; an engine
    without them has what its benchmark rows say."""
    return tuple(
        _page(model, cell, cell.row, manifests, layers)
        for model in models
        for cell in model.cells.values()
        if cell.row is not None
    )


def _page(
    model: ModelSection,
    cell: Cell,
    row: BenchmarkRow,
    manifests: Mapping[str, Manifest],
    layers: Mapping[str, Layers | str],
) -> EnginePage:
    spec = row.spec_digest or ""
    manifest = manifests.get(spec)
    found = layers.get(spec, "not read for this page")
    name = f"{cell.recipe} --gpu {cell.gpu} --precision {cell.precision}"
    return EnginePage(
        slug=slug_of(cell),
        cell=cell,
        lineage=(
            *_of_row(row),
            *(Fact(*line) for line in (facts.lineage(manifest) if manifest else ())),
        ),
        figures=_figures(row),
        timings=tuple(
            one
            for one in model.latest
            if (one.spec_digest, one.gpu, one.precision) == (spec, cell.gpu, cell.precision)
        ),
        layer_words=found if isinstance(found, str) else _layer_words(found),
        layers=() if isinstance(found, str) else tuple(map(_cells, _costliest(found))),
        commands=(
            f"enginefarm pull {name}",
            *((f"enginefarm show {spec[: facts.DIGITS]} --layers",) if spec else ()),
        ),
    )


def _of_row(row: BenchmarkRow) -> tuple[Fact, ...]:
    return (
        Fact("engine", (row.engine_digest or "–")[: facts.DIGITS]),
        Fact("spec", (row.spec_digest or "–")[: facts.DIGITS]),
        Fact("toolchain", f"{row.toolchain} {row.toolchain_build}".strip()),
    )


def _figures(row: BenchmarkRow) -> tuple[Fact, ...]:
    asked = (
        Fact("size", "{} MB", _scaled(row.size_bytes, 1e-6), True),
        Fact("build", "{} s", row.build_seconds, True),
        Fact("median latency", "{} ms", row.latency_ms_median, True),
        Fact("p99 latency", "{} ms", row.latency_ms_p99, True),
        Fact("throughput", "{} samples/s", row.throughput_samples_per_s, False),
        Fact("top-1 agreement", "{} %", _scaled(row.top1_agreement, 100), False),
        Fact("top-1 accuracy", "{} %", _scaled(row.top1_accuracy, 100), False),
    )
    found = [
        Fact(one.label, one.text.format(number(one.value)), one.value, one.lower)
        for one in asked
        if one.value is not None
    ]
    if row.cosine_min is not None:
        found.append(Fact("cosine to FP32", f"{row.cosine_min:.5f}", row.cosine_min, False))
    if row.relative_l2_max is not None:
        found.append(Fact("relative L2", power(row.relative_l2_max), row.relative_l2_max, True))
    if row.latency_ms_median is not None:
        found.append(Fact("measured", f"{row.profile}, batch {row.batch}, {row.harness}"))
    return tuple(found)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _layer_words(found: Layers) -> str:
    kinds = Counter(layer.precision or "unknown" for layer in found.layers)
    parts = ", ".join(f"{count} {name}" for name, count in kinds.most_common())
    timed = [layer.ms for layer in found.layers if layer.ms is not None]
    words = f"{len(found.layers)} layers by precision: {parts}"
    if timed:
        words += f"; {number(sum(timed))} ms together when profiled"
    if found.network:
        words += "; of the network before the build, so its fusions are not known"
    return words


def _costliest(found: Layers) -> list[Layer]:
    """By time where it was profiled, else by the bytes that they read and write."""

    def cost(layer: Layer) -> tuple[float, int]:
        return (layer.ms or 0.0, (layer.weight_bytes or 0) + (layer.output_bytes or 0))

    return sorted(found.layers, key=cost, reverse=True)[:LAYERS_SHOWN]


def _cells(layer: Layer) -> tuple[str, ...]:
    bytes_ = (layer.weight_bytes, layer.output_bytes)
    return (
        layer.name,
        layer.kind or "–",
        layer.precision or "–",
        *("–" if size is None else f"{number(size / 1e3)} kB" for size in bytes_),
        "–" if layer.ms is None else f"{number(layer.ms)} ms",
    )


def title_of(row: BenchmarkRow) -> str:
    """The runtime of a timing, as the tables of an engine call it."""
    return RUNTIMES[row.runtime].title + (", CUDA graph" if row.cuda_graph else "")
