"""The speed guard: an engine of fewer bits enters a channel only if it is faster.

INT8 is often no faster than FP16 on a GPU, and always less accurate; such an engine is left out
of the channel, and its host gets the engine of more bits. docs/decisions/0191.
"""

from __future__ import annotations

from typing import NamedTuple

from enginefarm.documents.manifest import Manifest
from enginefarm.documents.thresholds import Regression
from enginefarm.names import PrecisionName
from enginefarm.store.channels import GateResult, Verdict
from enginefarm.store.engine_store import EngineStore
from enginefarm.tables import speeds

BITS: dict[PrecisionName, int] = {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8, "fp8": 8}


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
        wider = [
            one
            for one in manifests
            if one.gpu == manifest.gpu and BITS[one.precision] > BITS[manifest.precision]
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
    """Whether it enters, what the gate says, and why."""
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
    words = f"{ratio:.3g} × as fast as {precision} at {where}; {least:g} × is asked for"
    if ratio >= least:
        return True, "passed", words
    return False, "waived", f"left out of the channel: {words}"
