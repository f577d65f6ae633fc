"""Gates: the checks that an engine must pass before a channel points at it.

The speed guard comes first: INT8 is often no faster than FP16 on a GPU, and always less accurate.
An engine of fewer bits enters a channel only if it is faster; else it is left out, and its host
gets the engine of more bits. docs/decisions/0191.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from enginefarm.documents.manifest import Manifest
from enginefarm.documents.thresholds import Regression
from enginefarm.errors import GateError, SignatureRejected, command
from enginefarm.names import PRECISIONS
from enginefarm.pulling.catalog import StoreCatalog, require_trusted
from enginefarm.store import layout
from enginefarm.store.budgets import Budgets
from enginefarm.store.channels import GateResult, Verdict
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.signing import Trust
from enginefarm.store.statements import UNSIGNED_RESULT, trusted_on_device
from enginefarm.tables import speeds


@dataclass(frozen=True)
class GateContext:
    """What the gates read.

    recipe: the name that the engines are promoted under. production: the manifests that the target
    channel names now. left_out: (GPU, precision) of the engines that the speed guard left out.
    """

    store: EngineStore
    recipe: str
    production: tuple[Manifest, ...]
    allow_pending: bool
    allow_missing: bool
    trust: Trust | None
    regression: Regression
    budgets: Budgets
    left_out: frozenset[tuple[str, str]] = frozenset()


RUN_IT = {
    "pending": "run it there",
    "passed": "run benchmark-engine again on a worker that has the signing key, sign it with "
    "`enginefarm sign --vouch`",
}
"""What to do about an engine that cannot be promoted yet, by what its manifest says."""

Gate = Callable[[Manifest, GateContext], tuple[Verdict, str]]
SetGate = Callable[[tuple[Manifest, ...], GateContext], tuple[Verdict, str]]


def bytes_exist(manifest: Manifest, context: GateContext) -> tuple[Verdict, str]:
    if context.store.has_blob(manifest.engine):
        return "passed", f"{layout.blob(manifest.engine)} is in the store"
    return "refused", "the engine's bytes are not in the store: build it again"


def verified_on_device(manifest: Manifest, context: GateContext) -> tuple[Verdict, str]:
    status = manifest.device_verification.status
    believed = trusted_on_device(manifest, context.trust).device_verification.status
    if believed == "passed":
        return "passed", f"verified on {manifest.device_verification.gpu or manifest.gpu}"
    why = "not yet run on the GPU" if status == "pending" else UNSIGNED_RESULT
    if believed == "pending" and context.allow_pending:
        return "waived", f"{why}; --allow-pending"
    if believed == "pending":
        return "refused", f"{why}: {RUN_IT[status]}, or pass --allow-pending"
    return "refused", f"failed on the GPU: {manifest.device_verification.reason}"


def within_accuracy_budget(manifest: Manifest, context: GateContext) -> tuple[Verdict, str]:
    """Judged by the recipe's current budget, as the farm last recorded it."""
    over = context.budgets.over(manifest)
    unknown = context.budgets.unknown(manifest)
    if over:
        return "refused", "; ".join(over)
    if unknown:
        return "refused", f"the budget needs {', '.join(unknown)}: build the recipe again"
    return "passed", f"{manifest.verification.samples} samples within budget"


def is_signed(manifest: Manifest, context: GateContext) -> tuple[Verdict, str]:
    if context.trust is None:
        return "waived", "no trust key is configured"
    catalog = StoreCatalog(context.store)
    try:
        keyid = require_trusted(catalog, context.recipe, manifest, context.trust)
    except SignatureRejected as error:
        return "refused", error.why
    return "passed", f"signed by {keyid[:12]}"


def not_slower(manifest: Manifest, context: GateContext) -> tuple[Verdict, str]:
    """Compared with the channel's current engine of the same GPU and precision."""
    from enginefarm.tables.filter import RowFilter
    from enginefarm.tables.regression import judge
    from enginefarm.tables.tables import BenchmarkTables

    before = next(
        (
            one
            for one in context.production
            if (one.gpu, one.precision) == (manifest.gpu, manifest.precision)
        ),
        None,
    )
    rows = BenchmarkTables(context.store.objects).rows(
        RowFilter.of(
            recipe=manifest.recipe,
            gpu=manifest.gpu,
            precision=manifest.precision,
            outcome="measured",
        )
    )
    mine = [row for row in rows if row.engine_digest == manifest.engine.digest]
    if not mine:
        return "waived", "no timing of this engine yet"
    night = max(row.date for row in mine)
    verdict = judge(
        [row for row in mine if row.date == night],
        [row for row in rows if row.date < night and row.engine_digest != manifest.engine.digest],
        context.regression,
        production=[row for row in rows if before and row.engine_digest == before.engine.digest],
    )
    if verdict.state == "slower":
        return "refused", verdict.because
    if verdict.state in ("no-baseline", "unstable"):
        return "waived", verdict.because or "nothing alike to compare with"
    return "passed", verdict.because or f"{verdict.state}, {verdict.latency_ms:.3g} ms"


def one_model(manifests: tuple[Manifest, ...], context: GateContext) -> tuple[Verdict, str]:
    graphs = sorted({one.spec.onnx_digest[:12] for one in manifests})
    if len(graphs) == 1:
        return "passed", f"graph {graphs[0]}"
    return "refused", f"engines of {len(graphs)} different graphs: {', '.join(graphs)}"


def nothing_lost(manifests: tuple[Manifest, ...], context: GateContext) -> tuple[Verdict, str]:
    has = {(one.gpu, one.precision) for one in manifests}
    lost = sorted({(one.gpu, one.precision) for one in context.production} - has)
    if not lost:
        return "passed", f"{len(manifests)} engines"
    names = ", ".join("/".join(pair) for pair in lost)
    if context.left_out.issuperset(lost):
        return "waived", f"no longer served: {names}; the speed guard left them out"
    if context.allow_missing:
        return "waived", f"no longer served: {names}; --allow-missing"
    return "refused", f"the channel would lose {names}: build them, or pass --allow-missing"


GATES: dict[str, Gate] = {
    "bytes": bytes_exist,
    "device": verified_on_device,
    "accuracy": within_accuracy_budget,
    "signature": is_signed,
    "regression": not_slower,
}
SET_GATES: dict[str, SetGate] = {"one-model": one_model, "nothing-lost": nothing_lost}


def run_gates(manifests: tuple[Manifest, ...], context: GateContext) -> tuple[GateResult, ...]:
    """The results of every gate for every engine, so that all reasons are shown together."""
    results: list[GateResult] = []
    for name, set_gate in SET_GATES.items():
        verdict, detail = set_gate(manifests, context)
        results.append(GateResult(gate=name, verdict=verdict, detail=detail))
    for manifest in manifests:
        for name, gate in GATES.items():
            results.append(GateResult.on(manifest, name, *gate(manifest, context)))
    return tuple(results)


def require_passed(
    channel: str, manifests: tuple[Manifest, ...], context: GateContext
) -> tuple[GateResult, ...]:
    """The results of `run_gates`.

    channel: `recipe@channel`, for the error. Raises: GateError that lists every refusal.
    """
    results = run_gates(manifests, context)
    refusals = [one for one in results if one.verdict == "refused"]
    if refusals:
        many = "s" if len(refusals) > 1 else ""
        raise GateError(
            f"{command('promote')} {channel}: refused by {len(refusals)} gate{many}",
            why="\n       ".join(
                f"{one.label + ': ' if one.label else ''}{one.gate}: {one.detail}"
                for one in refusals
            ),
            fix="the channel stays where it was",
        )
    return results


class GuardResult(NamedTuple):
    """kept: what may enter the channel. left_out: (GPU, precision) of what may not."""

    kept: tuple[Manifest, ...]
    left_out: frozenset[tuple[str, str]]
    results: tuple[GateResult, ...]


def guard(store: EngineStore, manifests: tuple[Manifest, ...], rule: Regression) -> GuardResult:
    """Compares each engine with those of more bits for the same GPU."""
    kept: list[Manifest] = []
    left_out: set[tuple[str, str]] = set()
    results: list[GateResult] = []
    known: dict[tuple[str, str], speeds.Speeds] = {}
    for manifest in manifests:
        bits = PRECISIONS[manifest.precision].bits
        wider = [
            one
            for one in manifests
            if one.gpu == manifest.gpu and PRECISIONS[one.precision].bits > bits
        ]
        for recipe in {one.recipe for one in (manifest, *wider)}:
            where = (recipe, manifest.gpu)
            if wider and where not in known:
                known[where] = speeds.read(store.objects, *where)
        fast, verdict, detail = _compare(manifest, wider, known, rule.min_speedup)
        if fast:
            kept.append(manifest)
        else:
            left_out.add((manifest.gpu, manifest.precision))
        results.append(GateResult.on(manifest, "speed", verdict, detail))
    return GuardResult(tuple(kept), frozenset(left_out), tuple(results))


def _compare(
    manifest: Manifest,
    wider: list[Manifest],
    known: dict[tuple[str, str], speeds.Speeds],
    least: float,
) -> tuple[bool, Verdict, str]:
    if not wider:
        return True, "passed", "this GPU has no engine with more bits to compare with"

    def of(one: Manifest) -> tuple[speeds.Speed, ...]:
        return known[one.recipe, one.gpu].engine(one.spec_digest)

    found = {
        one.precision: ratio
        for one in wider
        if (ratio := speeds.times_faster(of(manifest), of(one))) is not None
    }
    if not found:
        names = ", ".join(one.precision for one in wider)
        return True, "waived", f"never timed alike with {names} on this GPU: it may be no faster"
    precision, (ratio, where) = min(found.items(), key=lambda item: item[1][0])
    words = f"{ratio:.4g} × as fast as {precision} at {where}; {least:g} × is asked for"
    if ratio >= least:
        return True, "passed", words
    return False, "waived", f"left out of the channel: {words}"
