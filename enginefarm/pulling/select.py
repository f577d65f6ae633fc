"""Selects the engines that fit a host: manifests × host -> ranked candidates and rejections.

It only computes. A rejected engine is never pulled. Whatever cannot be checked, because the host
does not report it, becomes a caveat of the candidate.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from pydantic import Field

from enginefarm.documents.host import Host
from enginefarm.documents.manifest import Manifest
from enginefarm.names import PRECISION_ORDER, PrecisionName, runtime_of
from enginefarm.pulling.checks import CHECKS, Fit, accurate, fit_of, is_caveat
from enginefarm.schema import Frozen
from enginefarm.store.budgets import Budgets
from enginefarm.tables.speeds import Goal, Speed
from enginefarm.tables.speeds import rank as rank_speeds


class Candidate(NamedTuple):
    """speed: the measurement that ranked it, if any."""

    manifest: Manifest
    fit: Fit
    caveats: tuple[str, ...] = ()
    speed: Speed | None = None


class Rejection(NamedTuple):
    manifest: Manifest
    reasons: tuple[str, ...]


class Selection(NamedTuple):
    """Candidates, best first; rejections by GPU, precision and age.

    ranked_by: if a goal was given, the figures, or why there are none.
    """

    candidates: tuple[Candidate, ...]
    rejections: tuple[Rejection, ...]
    ranked_by: str = ""


class Wish(Frozen):
    """The goal of a ranking, and its batch size (None: any measured one)."""

    goal: Goal
    batch: int | None = Field(default=None, ge=1)


def select(
    manifests: Iterable[Manifest],
    host: Host,
    precision: PrecisionName | None = None,
    budgets: Budgets | None = None,
    wish: Wish | None = None,
    speeds: Mapping[str, Collection[Speed]] | None = None,
) -> Selection:
    """Ranks engines for a host. budgets: the recipe's current budgets; None: those of the build.

    wish: engines that were measured in the same way on this GPU (speeds, by spec digest) are ranked
    by that figure, before the others.
    Order: runtime known to be installed, newest graph of the model, measurement, fit (exact GPU →
    same compute capability → hardware-compatible → portable), exact label, precision, newest build,
    digest. The order of the input does not matter.
    """
    found = sorted(manifests, key=lambda one: one.spec_digest)
    newest = _newest_build(found)
    candidates: list[Candidate] = []
    rejections: list[Rejection] = []
    for manifest in found:
        findings = [finding for check in CHECKS if (finding := check(manifest, host))]
        findings += accurate(manifest, budgets or Budgets())
        if precision not in (None, manifest.precision):
            findings.insert(0, f"its precision is {manifest.precision}, not {precision}")
        reasons = tuple(str(one) for one in findings if not is_caveat(one))
        caveats = tuple(str(one) for one in findings if is_caveat(one))
        fit = fit_of(manifest, host)
        if reasons or fit is None:
            rejections.append(Rejection(manifest=manifest, reasons=reasons))
        else:
            candidates.append(Candidate(manifest=manifest, fit=fit, caveats=caveats))

    places, words = _measured(candidates, host, wish, speeds or {})

    def rank(candidate: Candidate) -> tuple[object, ...]:
        manifest = candidate.manifest
        return (
            runtime_of(manifest.spec.toolchain.name)[0] not in host.runtimes,
            -newest[manifest.spec.onnx_digest],
            places.get(manifest.spec_digest, (len(candidates), None))[0],
            candidate.fit,
            manifest.gpu != host.gpu,
            PRECISION_ORDER.index(manifest.precision),
            -manifest.created_at.timestamp(),
            manifest.spec_digest,
        )

    rejections.sort(
        key=lambda one: (
            one.manifest.gpu,
            one.manifest.precision,
            -one.manifest.created_at.timestamp(),
            one.manifest.spec_digest,
        )
    )
    ordered = [
        one._replace(speed=places[one.manifest.spec_digest][1])
        if one.manifest.spec_digest in places
        else one
        for one in sorted(candidates, key=rank)
    ]
    return Selection(candidates=tuple(ordered), rejections=tuple(rejections), ranked_by=words)


def _measured(
    candidates: Iterable[Candidate],
    host: Host,
    wish: Wish | None,
    speeds: Mapping[str, Collection[Speed]],
) -> tuple[dict[str, tuple[int, Speed]], str]:
    """Spec digest -> rank and figure; and the ranking in words."""
    if wish is None:
        return {}, ""
    fitting = {one.manifest.spec_digest for one in candidates}
    found = rank_speeds(
        {spec: found for spec, found in speeds.items() if spec in fitting}, wish.goal, wish.batch
    )
    constant = f"so the constant order is used: fit, then {', '.join(PRECISION_ORDER)}"
    at = f" at batch {wish.batch}" if wish.batch else ""
    if found is None:
        where = host.gpu or "this host's GPU"
        return {}, f"no engine that fits was measured on {where}{at}, {constant}"
    places = {spec: (place, one) for place, (spec, one) in enumerate(found.best_first)}
    words = f"by {wish.goal}, {found.words}: {len(places)} of {len(fitting)} engines that fit"
    rest = len(fitting) - len(places)
    return places, words + (
        f"; the {rest} not measured in the same way come after them" if rest else ""
    )


def _newest_build(manifests: Iterable[Manifest]) -> dict[str, float]:
    """Graph -> time of its last build. A newer graph is a newer model."""
    newest: dict[str, float] = {}
    for one in manifests:
        built = one.created_at.timestamp()
        newest[one.spec.onnx_digest] = max(built, newest.get(one.spec.onnx_digest, built))
    return newest
