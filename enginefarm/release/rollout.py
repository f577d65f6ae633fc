"""Moves a channel and a running Triton to new engines together, or neither."""

from __future__ import annotations

from dataclasses import dataclass

from enginefarm.documents.manifest import Manifest
from enginefarm.documents.thresholds import DEFAULT_BUDGETS
from enginefarm.errors import GateError, StoreConflict, StoreMissing, UsageError
from enginefarm.names import PrecisionName
from enginefarm.pulling import triton
from enginefarm.pulling.triton_places import Place
from enginefarm.release import promote as release
from enginefarm.release.triton_replay import RolloutCandidate, RolloutLimits
from enginefarm.release.triton_server import TritonServer
from enginefarm.release.triton_trial import Flip, Trial, try_out
from enginefarm.settings import user
from enginefarm.store import budgets
from enginefarm.store.cache import BlobCache
from enginefarm.store.channels import GateResult, Revision
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.signing import Trust
from enginefarm.tables.rules import recorded


@dataclass(frozen=True)
class RolloutRequest:
    """What is rolled out, and to which channel.

    source: a channel, or None for the newest engines. gpu: only its engine, for a repository of
    one GPU. model: its name in Triton. latency_ratio None: the recipe's.
    """

    recipe: str
    channel: str
    source: str | None = None
    precision: PrecisionName | None = None
    gpu: str | None = None
    model: str | None = None
    requests: int = 300
    latency_ratio: float | None = None
    allow_pending: bool = False
    allow_missing: bool = False
    why: str = ""


def rollout(
    store: EngineStore,
    cache: BlobCache,
    server: TritonServer,
    place: Place,
    asked: RolloutRequest,
    trust: Trust | None = None,
) -> Revision:
    """The channel's new revision, once its engines serve in Triton.

    The gates of a promotion come first, so that nothing is loaded that would not be promoted.
    Raises: GateError when a gate or Triton refuses, with the version before still serving and the
    outcome in the channel's log; TritonError; StoreConflict when somebody else moved the channel
    meanwhile, with Triton back at the version before.
    """
    flipped: list[Flip] = []

    def approve(manifests: tuple[Manifest, ...], _: tuple[GateResult, ...]) -> release.Approval:
        candidate = _candidate(store, cache, asked, manifests)
        ratio = asked.latency_ratio or recorded(store, asked.recipe).latency_ratio
        trial = try_out(server, place, candidate, RolloutLimits(ratio, asked.requests))
        if trial.refusals:
            raise _refused(store, server, asked, candidate.model, trial)
        flip = Flip(server, place, candidate, trial)
        try:
            serving = flip.forward()
        except GateError as error:
            _log(store, server, asked, trial.gates, error.why)
            raise
        flipped.append(flip)
        return release.Approval(user(), asked.why, (*trial.gates, serving))

    try:
        return release.promote(
            store,
            asked.recipe,
            asked.channel,
            source=asked.source,
            allow_pending=asked.allow_pending,
            allow_missing=asked.allow_missing,
            trust=trust,
            approve=approve,
        )
    except BaseException:
        for flip in flipped:  # the channel did not move, so Triton does not either
            flip.back()
        raise


def _candidate(
    store: EngineStore, cache: BlobCache, asked: RolloutRequest, manifests: tuple[Manifest, ...]
) -> RolloutCandidate:
    of_gpu = tuple(one for one in manifests if asked.gpu in (None, one.gpu))
    engines = triton.choose(of_gpu, asked.recipe, asked.precision)
    model = asked.model or asked.recipe
    files = triton.repository(engines, name=model)
    if any(not file.path.startswith(f"{model}/") for file in files):
        raise UsageError(
            "rollout: GPUs of one compute capability have a repository each",
            why=", ".join(sorted(one.spec.label for one in engines)),
            fix="name the server's GPU with --gpu, and the repository of that GPU",
        )
    first = engines[0]
    references = {one.reference and one.reference.digest for one in engines}
    if first.reference is None or len(references) != 1:
        raise StoreMissing(
            f"rollout: the engines of {asked.recipe} do not share a reference",
            why="their outputs are compared with the reference's",
            fix="build the recipe again, or name the server's GPU with --gpu",
        )
    known = budgets.recorded(store, asked.recipe).of
    return RolloutCandidate(
        model=model,
        tensors=first.tensors,
        batched=triton.max_batch_size(first) > 0,
        files=lambda name, version: triton.repository(engines, name=name, version=version),
        blobs={one.engine.digest: cache.ensure(store, one.engine) for one in engines},
        reference=cache.ensure(store, first.reference),
        budget=known.get(first.precision, DEFAULT_BUDGETS[first.precision]),
        comparing=first.verification.comparing,
        measured=first.verification.outputs,
    )


def _refused(
    store: EngineStore, server: TritonServer, asked: RolloutRequest, model: str, trial: Trial
) -> GateError:
    why = "; ".join(f"{one.gate}: {one.detail}" for one in trial.refusals)
    logged = _log(store, server, asked, trial.gates, why)
    return GateError(
        f"rollout {asked.recipe}@{asked.channel}: {server.name} refused version {trial.version} "
        f"of {model}",
        why=why,
        fix=f"version {trial.before} still serves; {logged}",
    )


def _log(
    store: EngineStore,
    server: TritonServer,
    asked: RolloutRequest,
    gates: tuple[GateResult, ...],
    why: str,
) -> str:
    """Writes the outcome to the channel's log. Returns what became of that, in words."""
    name = f"{asked.recipe}@{asked.channel}"
    try:
        entry = release.record_refusal(
            store,
            asked.recipe,
            asked.channel,
            source=f"rollout of {asked.source or 'newest'} on {server.name}",
            gates=gates,
            why=f"{asked.why}: {why}" if asked.why else why,
        )
    except StoreConflict:
        return f"the log of {name} does not have it: somebody else moved the channel"
    if entry is None:
        return f"{name} has no log yet: nothing was promoted to it"
    return f"revision {entry.revision} of {name} has the outcome and the same engines as before"
