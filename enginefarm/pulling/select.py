"""Which engine fits a host: manifests × host -> ranked candidates, and why the rest do not.

Pure. Rejections are hard: an engine that is rejected is never pulled. What cannot be checked
because the host does not say is a caveat of the candidate, never a silent pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from pydantic import Field

from enginefarm.documents.manifest import Manifest
from enginefarm.host.detect import Host
from enginefarm.names import PRECISION_ORDER, PrecisionName, runtime_of
from enginefarm.pulling.checks import CHECKS, Fit, accurate, fit_of, is_caveat
from enginefarm.schema import Frozen
from enginefarm.store.budgets import Budgets
from enginefarm.tables.speeds import Goal, Speed
from enginefarm.tables.speeds import rank as rank_speeds


class Candidate(Frozen):
    manifest: Manifest
    fit: Fit
    caveats: tuple[str, ...] = ()
    speed: Speed | None = Field(default=None, description="What it was ranked by, if measured.")


class Rejection(Frozen):
    manifest: Manifest
    reasons: tuple[str, ...]


class Selection(Frozen):
    """Candidates, best first; rejections in the order of GPU, precision and age."""

    candidates: tuple[Candidate, ...]
    rejections: tuple[Rejection, ...]
    ranked_by: str = Field(
        default="", description="Where a goal was asked for: the figures, or why there are none."
    )


class Wish(Frozen):
    """The goal of a ranking, and the batch size (None: any that was measured)."""

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
    """Ranks engines for a host. budgets: the recipe's of today; None: those of the build.

    wish: then engines that were measured alike on this GPU (speeds, by spec digest) come first,
    the best of them before the others.
    Order: runtime known to be installed, newest graph of the model, what was measured, fit
    (exact GPU → same compute capability → hardware-compatible → portable), an exact label within
    the fit, precision, newest build, digest. The same input has the same order, however sorted.
    """
    found = sorted(manifests, key=lambda one: one.spec_digest)
    newest = _newest_build(found)
    candidates: list[Candidate] = []
    rejections: list[Rejection] = []
    for manifest in found:
        findings = [finding for check in CHECKS if (finding := check(manifest, host))]
        findings += accurate(manifest, budgets or Budgets())
        if precision not in (None, manifest.precision):
            findings.insert(0, f"precision is {manifest.precision}; {precision} is asked for")
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
        one.model_copy(update={"speed": places[one.manifest.spec_digest][1]})
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
    """Spec digest -> its place and figure; and what a person is told of the ranking."""
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
    return places, words + (f"; {rest} not measured alike come after them" if rest else "")


def _newest_build(manifests: Iterable[Manifest]) -> dict[str, float]:
    """Graph -> when it was last built: a newer graph is a newer model."""
    newest: dict[str, float] = {}
    for one in manifests:
        built = one.created_at.timestamp()
        newest[one.spec.onnx_digest] = max(built, newest.get(one.spec.onnx_digest, built))
    return newest
