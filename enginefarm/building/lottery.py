"""The build lottery (`builder.attempts`): builds one spec N times, keeps the fastest accurate plan.

Tactic timing is noisy, so two builds on the same GPU can differ by some percent. A timing
cache would make them alike: attempts are built without one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from enginefarm.errors import AccuracyError, BuildError
from enginefarm.progress import report
from enginefarm.schema import Frozen
from enginefarm.toolchains import BuildOutput, BuildRequest


class Attempt(Frozen):
    index: int
    latency_ms: float | None = None
    refused: str = ""
    """Why it cannot win: not accurate, or not built."""


class Draw(Frozen):
    """The result of the lottery, recorded in the manifest's build details."""

    attempts: tuple[Attempt, ...]
    kept: int
    best_ms: float
    worst_ms: float


def draw(
    request: BuildRequest,
    *,
    build: Callable[[BuildRequest], BuildOutput],
    refuse: Callable[[Path], str],
    latency_ms: Callable[[Path], float],
) -> tuple[BuildOutput, Draw]:
    """Builds `attempts` times and keeps the best.

    refuse: why a plan is not accurate enough on this GPU; empty when it is.
    latency_ms: median of a plan on this GPU.
    Raises: BuildError when no attempt built (the first one's); AccuracyError when none was
    accurate.
    """
    wanted = request.spec.builder.attempts
    tickets: list[Attempt] = []
    outputs: dict[int, BuildOutput] = {}
    first_error: BuildError | None = None
    for index in range(wanted):
        report("attempts", index, wanted, request.spec.label)
        folder = request.work_dir / f"attempt-{index}"
        alone = request.model_copy(update={"work_dir": folder, "timing_cache": None})
        folder.mkdir(parents=True)
        try:
            output = build(alone)
        except BuildError as error:
            first_error = first_error or error
            tickets.append(Attempt(index=index, refused=error.what))
            continue
        reason = refuse(output.plan)
        if reason:
            tickets.append(Attempt(index=index, refused=reason))
            continue
        outputs[index] = output
        tickets.append(Attempt(index=index, latency_ms=latency_ms(output.plan)))
    timed = {t.index: t.latency_ms for t in tickets if t.latency_ms is not None}
    if not timed:
        if first_error is not None:
            raise first_error
        raise AccuracyError(
            f"build {request.spec.label}: none of {wanted} attempts is accurate on this GPU",
            why="; ".join(dict.fromkeys(ticket.refused for ticket in tickets)),
        )
    kept = min(timed, key=lambda index: timed[index])
    result = Draw(
        attempts=tuple(tickets),
        kept=kept,
        best_ms=min(timed.values()),
        worst_ms=max(timed.values()),
    )
    details = outputs[kept].details | {"lottery": result.model_dump(mode="json")}
    return outputs[kept].model_copy(update={"details": details}), result
