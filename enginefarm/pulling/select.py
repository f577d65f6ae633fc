"""Which engine fits a host: manifests × host -> ranked candidates, and why the rest do not.

Pure. Rejections are hard: an engine that is rejected is never pulled. What cannot be checked
because the host does not say is a caveat of the candidate, never a silent pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from enum import IntEnum

from pydantic import Field

from enginefarm.documents.gpus import PART_OF_A_CARD
from enginefarm.documents.manifest import Manifest
from enginefarm.host.detect import Host, architecture
from enginefarm.names import PRECISION_ORDER, PrecisionName, runtime_of
from enginefarm.schema import Frozen
from enginefarm.store.budgets import Budgets
from enginefarm.tables.speeds import Goal, Speed
from enginefarm.tables.speeds import rank as rank_speeds

MINIMUM_DRIVER = {"11": "450.80.02", "12": "525.60.13", "13": "580.65.06"}
"""CUDA major -> oldest Linux driver that runs it (CUDA release notes, minor-version
compatibility)."""


class Fit(IntEnum):
    """How well an engine fits, best first."""

    EXACT_GPU = 0
    SAME_COMPUTE_CAPABILITY = 1
    HARDWARE_COMPATIBLE = 2
    PORTABLE = 3

    @property
    def words(self) -> str:
        return self.name.lower().replace("_", " ")


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
    """What the engine is wanted for, and at which batch (None: any that was measured)."""

    goal: Goal
    batch: int | None = Field(default=None, ge=1)


class _Unknown(str):
    """A caveat: what could not be checked."""


def is_caveat(said: str) -> bool:
    """Whether what a check said is that it could not check, and no reason to refuse."""
    return isinstance(said, _Unknown)


Check = Callable[[Manifest, Host], str | None]


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
        findings += _accurate(manifest, budgets or Budgets())
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


def fit_of(manifest: Manifest, host: Host) -> Fit | None:
    """How the engine's GPU relates to the host's; None when it cannot run there."""
    built_for = manifest.spec.gpu
    portable = bool(runtime_of(manifest.spec.toolchain.name)[1].magic)
    if host.gpu is not None and built_for.label == host.gpu:
        return Fit.PORTABLE if portable else Fit.EXACT_GPU
    if host.compute_capability is None:
        return None
    if built_for.compute_capability == host.compute_capability:
        return Fit.PORTABLE if portable else Fit.SAME_COMPUTE_CAPABILITY
    if host.compute_capability in manifest.build.compute_capabilities:
        return Fit.PORTABLE
    if (
        not portable
        and manifest.spec.builder.compatibility == "ampere_plus"
        and version_tuple(built_for.compute_capability) >= (8, 0)
        and version_tuple(host.compute_capability) >= (8, 0)
    ):
        return Fit.HARDWARE_COMPATIBLE
    return None


def _gpu(manifest: Manifest, host: Host) -> str | None:
    fit = fit_of(manifest, host)
    built_for = manifest.spec.gpu
    if fit is None:
        carried = ", ".join(manifest.build.compute_capabilities) or built_for.compute_capability
        return (
            f"built for {built_for.label} (compute capability {carried}), "
            f"compatibility {manifest.spec.builder.compatibility}; the host has "
            f"{host.compute_capability or 'an unknown compute capability'}"
        )
    if host.gpu_name is not None and PART_OF_A_CARD.search(host.gpu_name):
        return _Unknown(
            f"built for a whole {built_for.label}; the host has {host.gpu_name}: it can be slower, "
            "and fails where it needs more memory than that part of a card has"
        )
    if (
        fit is Fit.SAME_COMPUTE_CAPABILITY
        and manifest.spec.builder.compatibility != "same_compute_capability"
    ):
        return _Unknown(
            f"tuned on {built_for.label}: the same compute capability, another card; it can be "
            "slower, and fails where it needs more memory than the host has"
        )
    return None


def _runtime(manifest: Manifest, host: Host) -> str | None:
    toolchain = manifest.spec.toolchain
    runtime = runtime_of(toolchain.name)[0]
    here = host.runtimes.get(runtime)
    if here is None:
        return _Unknown(f"needs {runtime} {toolchain.build}; it is not known to be installed here")
    if here == toolchain.build:
        return None
    if not manifest.spec.builder.version_compatible:
        return f"built with {runtime} {toolchain.build}; the host has {here}"
    built, has = version_tuple(toolchain.build), version_tuple(here)
    if built[:1] != has[:1] or has < built:
        return (
            f"built with {runtime} {toolchain.build}, version-compatible within its major "
            f"version and onwards; the host has {here}"
        )
    return None


def _system(manifest: Manifest, host: Host) -> str | None:
    built = manifest.spec.toolchain
    if host.os is None or host.arch is None:
        return _Unknown(f"needs {built.os}/{built.arch}; the host's system is not known")
    if (built.os, architecture(built.arch)) != (host.os, host.arch):
        return f"built for {built.os}/{built.arch}; the host is {host.os}/{host.arch}"
    return None


def _driver(manifest: Manifest, host: Host) -> str | None:
    toolchain = manifest.spec.toolchain
    minimum = MINIMUM_DRIVER.get(toolchain.cuda.split(".")[0])
    if toolchain.os != "linux" or minimum is None:
        return _Unknown(f"the driver is not checked for CUDA {toolchain.cuda} on {toolchain.os}")
    if host.driver is None:
        return _Unknown(f"needs driver {minimum} or newer; the host's is not known")
    if version_tuple(host.driver) < version_tuple(minimum):
        return f"CUDA {toolchain.cuda} needs driver {minimum} or newer; the host has {host.driver}"
    return None


def _plugins(manifest: Manifest, host: Host) -> str | None:
    needed = frozenset(manifest.spec.plugins)
    if not needed:
        return None
    named = ", ".join(digest[:12] for digest in sorted(needed))
    if host.plugins is None:
        return _Unknown(f"needs plugin libraries {named}; the host does not say what it loads")
    missing = ", ".join(digest[:12] for digest in sorted(needed - host.plugins))
    return f"needs plugin libraries that the host lacks: {missing}" if missing else None


def _accurate(manifest: Manifest, budgets: Budgets) -> list[str]:
    over, unknown = budgets.over(manifest), budgets.unknown(manifest)
    found = [f"over the accuracy budget: {'; '.join(over)}"] if over else []
    if unknown:
        found.append(_Unknown(f"the accuracy budget asks for {', '.join(unknown)}: not measured"))
    return found


def _verified(manifest: Manifest, host: Host) -> str | None:
    if manifest.device_verification.status == "failed":
        return f"failed verification on the device: {manifest.device_verification.reason}"
    if manifest.device_verification.status == "pending":
        return _Unknown("not yet verified on a GPU")
    return None


def _understood(manifest: Manifest, host: Host) -> str | None:
    unknown = manifest.unknown_fields()
    if not unknown:
        return None
    return _Unknown(
        f"its manifest has fields that this enginefarm does not know: {', '.join(unknown)}; "
        "a newer one may have more to say of the engine"
    )


CHECKS: tuple[Check, ...] = (
    *(_gpu, _runtime, _system, _driver, _plugins, _verified),
    _understood,
)
"""To add a rule: a function above, and its name here."""


def version_tuple(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
