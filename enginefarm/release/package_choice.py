"""Chooses the engines of a recipe or channel that go into a model package (package.py)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from enginefarm.documents.manifest import Manifest
from enginefarm.errors import ToolchainError, UsageError
from enginefarm.names import PRECISION_ORDER, PRECISIONS, PrecisionName, runtime_of
from enginefarm.pulling.checks import accurate, is_caveat
from enginefarm.store.budgets import Budgets

RTX_PROVIDER = "NvTensorRTRTXExecutionProvider"
CAPABILITIES = {RTX_PROVIDER: ("8.6", "8.9", "12.0", "12.1")}
"""Provider -> the compute capabilities that it starts on, of those that plans are built for; a
provider that is not here starts on all. onnxruntime-ep-nv-tensorrt-rtx 0.5.0 refuses the others:
it "only supports RTX devices with compute capabilities 86, 89, 120 and above"."""


@dataclass(frozen=True)
class Variant:
    """One engine of a package. gpus: the labels that it serves."""

    name: str
    provider: str
    manifest: Manifest
    gpus: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """What goes into a package, and a line for each engine that was left out."""

    variants: tuple[Variant, ...]
    notes: tuple[str, ...]


def choose(
    manifests: Iterable[Manifest],
    recipe: str,
    *,
    precision: PrecisionName | None = None,
    gpu: str | None = None,
    budgets: Budgets | None = None,
) -> Choice:
    """The newest engine for each execution provider, all in one precision and of one graph.

    The graph is the one that was built last. precision: None takes the first of PRECISION_ORDER
    in which it can be packaged.
    Raises: ToolchainError where no engine can be packaged, with each one's reason; UsageError
    where a provider would have several.
    """
    engines = [*manifests]
    wanted = [one for one in engines if gpu in (None, one.gpu)]
    fits: list[Manifest] = []
    notes: list[tuple[PrecisionName, str]] = []
    for one in sorted(wanted, key=lambda one: (one.gpu, one.precision, one.created_at)):
        why = _misfit(one, budgets or Budgets())
        if why:
            line = f"{one.spec.label} {one.spec_digest[:12]} is left out: {why}"
            notes.append((one.precision, line))
        else:
            fits.append(one)
    if precision:
        fits = [one for one in fits if one.precision == precision]
    if not fits:
        of = f"{recipe}{f' for {gpu}' if gpu else ''}{f' in {precision}' if precision else ''}"
        labels = ", ".join(sorted({one.spec.label for one in engines}))
        raise ToolchainError(
            f"package: {of} has no engine that ONNX Runtime can load",
            why="\n       ".join(line for _, line in notes) or f"its engines are: {labels}",
            fix="build one with toolchain tensorrt, trtexec, ort-trt or tensorrt-rtx, or leave out "
            "--gpu and --precision",
        )
    fits.sort(key=lambda one: (one.created_at, one.spec_digest))
    model = fits[-1].spec.onnx_digest
    of_model = {one.precision for one in fits if one.spec.onnx_digest == model}
    best = next(name for name in PRECISION_ORDER if name in of_model)
    newest: dict[tuple[str, str], Manifest] = {}
    for one in fits:
        if one.precision == best and one.spec.onnx_digest == model:
            newest[(_provider(one), one.gpu)] = one
    for one in fits:
        if one.precision == best and (_provider(one), one.gpu) not in newest:
            line = f"{one.spec.label} {one.spec_digest[:12]} is left out: it is of an earlier graph"
            notes.append((best, line))
    providers = dict.fromkeys(provider for provider, _ in newest)
    return Choice(
        variants=tuple(
            _variant(recipe, provider, [one for (of, _), one in newest.items() if of == provider])
            for provider in providers
        ),
        notes=tuple(line for of, line in notes if of == best),
    )


def _variant(recipe: str, provider: str, engines: list[Manifest]) -> Variant:
    different = {one.engine.digest for one in engines}
    gpus = tuple(sorted(one.gpu for one in engines))
    if len(different) > 1:
        raise UsageError(
            f"package: {recipe} has {len(different)} different engines for {provider} in "
            f"{engines[0].precision}, for {', '.join(gpus)}",
            why="a model package has one for each provider: ONNX Runtime takes the first, and does "
            "not check which GPU it was built for",
            fix=f"write a package for each GPU: --gpu {gpus[0]}",
        )
    first = min(engines, key=lambda one: one.gpu)
    return Variant(runtime_of(first.spec.toolchain.name)[0], provider, first, gpus)


def cpu_engines(choice: Choice, engines: Iterable[Manifest]) -> list[Manifest]:
    """The FP32 engines of the model that was chosen: the CPU variant may have their graph."""
    model = choice.variants[0].manifest.spec.onnx_digest
    wide = [one for one in engines if PRECISIONS[one.precision].bits == 32]
    return [one for one in wide if one.spec.onnx_digest == model]


def _provider(manifest: Manifest) -> str:
    return runtime_of(manifest.spec.toolchain.name)[1].provider


def _misfit(manifest: Manifest, budgets: Budgets) -> str:
    """Why an engine cannot be packaged; empty where it can."""
    provider, spec = _provider(manifest), manifest.spec
    if not provider:
        return f"ONNX Runtime has no execution provider that loads plans of {spec.toolchain.name}"
    starts_on = CAPABILITIES.get(provider)
    if starts_on is not None and spec.gpu.compute_capability not in starts_on:
        return f"{provider} starts only on compute capability {', '.join(starts_on)}"
    if len(spec.profiles) > 1:
        return f"it has {len(spec.profiles)} profiles, and ONNX Runtime runs only the first"
    if spec.plugins:
        return "it needs plugin libraries, which a package cannot bring"
    if manifest.reference is None:
        return "its manifest names no reference outputs, so that nothing could be checked"
    if manifest.device_verification.status == "failed":
        return f"it failed verification on the device: {manifest.device_verification.reason}"
    return "; ".join(str(one) for one in accurate(manifest, budgets) if not is_caveat(one))
