"""The outcome of each engine that a recipe asks for: the rows of every table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from enginefarm.documents.manifest import GraphVerification, Manifest
from enginefarm.documents.recipe import Recipe
from enginefarm.errors import AccuracyError, EnginefarmError
from enginefarm.names import PrecisionName
from enginefarm.planning.plan import Skip
from enginefarm.schema import Frozen, Name

Status = Literal["built", "cached", "rejected", "failed", "skipped"]


class Outcome(Frozen):
    """One GPU × precision of one recipe."""

    recipe: Name
    gpu: Name
    precision: PrecisionName
    status: Status
    toolchain: str = ""
    spec_digest: str = ""
    engine_digest: str = ""
    size_bytes: int | None = None
    build_seconds: float | None = None
    built_with: str = ""
    verify_seconds: float | None = None
    random_data: bool = False
    cosine_min: float | None = None
    relative_l2_max: float | None = None
    top1_agreement_min: float | None = None
    top1_accuracy: float | None = None
    on_device: str = ""
    reason: str = ""
    notes: tuple[str, ...] = ()
    exit_code: int = 0

    @property
    def label(self) -> str:
        return f"{self.gpu}/{self.precision}"

    @property
    def fine(self) -> bool:
        return self.status in ("built", "cached", "skipped")


def of_manifest(recipe: str, manifest: Manifest, status: Literal["built", "cached"]) -> Outcome:
    """recipe: the one that asked; the manifest names the one that built it."""
    toolchain = manifest.spec.toolchain
    return Outcome(
        recipe=recipe,
        gpu=manifest.gpu,
        precision=manifest.precision,
        status=status,
        toolchain=f"{toolchain.name} {toolchain.build}",
        spec_digest=manifest.spec_digest,
        engine_digest=manifest.engine.digest,
        size_bytes=manifest.engine.size_bytes,
        build_seconds=manifest.build.seconds,
        built_with=manifest.build.built_with or "",
        on_device=manifest.device_verification.status,
        notes=manifest.notes,
        **_figures(manifest.verification),
    )


def of_rejection(
    recipe: str, gpu: str, precision: PrecisionName, verification: GraphVerification
) -> Outcome:
    """The outcome of a graph over its accuracy budget; the reason says by how much."""
    return Outcome(
        recipe=recipe,
        gpu=gpu,
        precision=precision,
        status="rejected",
        reason="accuracy: " + "; ".join(verification.over_budget),
        exit_code=AccuracyError.exit_code,
        **_figures(verification),
    )


def of_error(recipe: str, gpu: str, precision: PrecisionName, error: EnginefarmError) -> Outcome:
    return Outcome(
        recipe=recipe,
        gpu=gpu,
        precision=precision,
        status="failed",
        reason=f"{type(error).__name__}: {error}",
        exit_code=error.exit_code,
    )


def of_skip(recipe: str, skip: Skip) -> Outcome:
    """Skipped where the recipe allows it; failed where it was refused."""
    return Outcome(
        recipe=recipe,
        gpu=skip.gpu,
        precision=skip.precision,
        status="failed" if skip.refused else "skipped",
        reason=skip.reason,
        exit_code=skip.exit_code,
    )


def in_order(recipe: Recipe, outcomes: Iterable[Outcome]) -> list[Outcome]:
    """The outcomes in the recipe's order: by GPU, then by precision."""
    return sorted(
        outcomes,
        key=lambda row: (recipe.gpus.index(row.gpu), recipe.precisions.index(row.precision)),
    )


def exit_code(outcomes: Iterable[Outcome]) -> int:
    """0 when no engine is missing; else the code of the first that is."""
    return next((outcome.exit_code for outcome in outcomes if not outcome.fine), 0)


def pull_line(outcomes: Sequence[Outcome]) -> str:
    """The command that pulls a table's first engine; empty if none was built."""
    for outcome in outcomes:
        if outcome.engine_digest:
            return (
                f"enginefarm pull {outcome.recipe} --gpu {outcome.gpu} "
                f"--precision {outcome.precision}"
            )
    return ""


HEADER = (
    "GPU",
    "prec.",
    "engine",
    "size",
    "build",
    "verify",
    "cosine",
    "top-1",
    "device",
    "status",
)
"""verify: seconds that the graph's verification took on the CPU. cosine: the worst output's,
against FP32 PyTorch. top-1: share of samples whose best class is the same. device: verification on
the GPU itself. `random`: on random inputs, not on data."""


def cells(outcome: Outcome) -> tuple[str, ...]:
    """One row under HEADER, as text."""
    return (
        outcome.gpu,
        outcome.precision,
        outcome.engine_digest[:12] or "–",
        "–" if outcome.size_bytes is None else f"{outcome.size_bytes / 1e6:.1f} MB",
        f"with {outcome.built_with}"
        if outcome.built_with
        else _text(outcome.build_seconds, "{:.1f} s"),
        _text(outcome.verify_seconds, "{:.1f} s"),
        _text(outcome.cosine_min, "{:.5f} random" if outcome.random_data else "{:.5f}"),
        _text(outcome.top1_agreement_min, "{:.1%}"),
        outcome.on_device or "–",
        outcome.status,
    )


def reasons(outcomes: Sequence[Outcome]) -> list[str]:
    """One text for each distinct reason and note, with the engines that it holds for."""
    found: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.reason:
            found.setdefault(f"{outcome.status}: {outcome.reason}", []).append(outcome.label)
        for note in outcome.notes:
            found.setdefault(f"note: {note}", []).append(outcome.label)
    return [f"{', '.join(labels)} {reason}" for reason, labels in found.items()]


SPECIAL = re.compile(r"[&\\`*_\[\]<>!|~#]")
"""What begins an element, a character reference, a link or a picture in Markdown."""


def inert(text: str) -> str:
    """The text, escaped so that Markdown shows it literally. Reasons contain names of nodes and
    quoted errors, which must not become links or pictures on a page of the farm."""
    return SPECIAL.sub(r"\\\g<0>", text)


def markdown(outcomes: Sequence[Outcome]) -> str:
    """The table in Markdown, and the pull command under it."""
    lines = [f"| {' | '.join(HEADER)} |", f"|{'---|' * len(HEADER)}"]
    for outcome in outcomes:
        row = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells(outcome))
        lines.append(f"| {' | '.join(row)} |")
    lines += [f"\n{inert(reason)}" for reason in reasons(outcomes)]
    command = pull_line(outcomes)
    if command:
        lines += ["", "```sh", command, "```"]
    return "\n".join(lines)


def _text(value: float | None, pattern: str) -> str:
    return "–" if value is None else pattern.format(value)


def _figures(verification: GraphVerification) -> dict[str, Any]:
    outputs = verification.outputs
    agreements = [o.top1_agreement for o in outputs if o.top1_agreement is not None]
    accuracies = [o.top1_accuracy for o in outputs if o.top1_accuracy is not None]
    return {
        "verify_seconds": verification.seconds,
        "random_data": verification.random_data,
        "cosine_min": min((o.cosine for o in outputs), default=None),
        "relative_l2_max": max((o.relative_l2 for o in outputs), default=None),
        "top1_agreement_min": min(agreements, default=None),
        "top1_accuracy": min(accuracies, default=None),
    }
