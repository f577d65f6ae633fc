"""A refit in place of a build: new weights in a plan that was built from the same graph.

The first plan of a skeleton is built, and recorded under the skeleton's key. Later models with that
skeleton are refitted into it, in child processes with the limits of a build, and verified on this
GPU. Whatever does not work out is built as always, and the manifest's notes say so.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from enginefarm.building.isolate import KINDS
from enginefarm.building.job import Job
from enginefarm.building.native import refused
from enginefarm.child.call import Child
from enginefarm.digest import sha256_file
from enginefarm.documents.manifest import Refit
from enginefarm.documents.spec import BlobRef, OnnxRef
from enginefarm.documents.stage import StageRecord
from enginefarm.documents.thresholds import DEFAULT_BUDGETS
from enginefarm.errors import BuildCancelled, BuildError, EnginefarmError
from enginefarm.graph.model.skeleton import WeightNames, WeightsOrder
from enginefarm.progress import report
from enginefarm.pulling.refit import LOG_NAME, RefitOrder, RefitResult, refit
from enginefarm.store.disk import clone_checked
from enginefarm.store.site import Site, found_record, healed, materialize, onnx_ref_of, stage_key
from enginefarm.store.statements import SigningPolicy
from enginefarm.toolchains import BuildOutput, BuildRequest

NOTE = "refit"
"""In a build's details: what was refitted, or why it was built all the same."""
KEY, PLAN = "skeleton_key", "skeleton"
"""In a plan's record: the skeleton that this plan is; the skeleton's plan that hosts start from."""


class Skeleton(NamedTuple):
    """A plan that can take new weights, the graph that it was built from, and its layers.

    built: its tensors, and the seconds that its build took.
    """

    plan: BlobRef
    graph: OnnxRef
    layers: BlobRef | None
    built: BuildOutput


class RefitAttempt(NamedTuple):
    """output: None if the engine has to be built. weights: what hosts set in a skeleton's plan, or
    None if they download the engine whole. values: for the plan's record. said: for its details."""

    output: BuildOutput | None
    weights: Path | None
    values: dict[str, JsonValue]
    said: str = ""


def attempt(
    site: Site,
    job: Job,
    request: BuildRequest,
    policy: SigningPolicy | None,
    cancel: threading.Event,
) -> RefitAttempt:
    """The engine by a refit, if the store has a plan of its skeleton that takes the weights.

    Raises: BuildError when the graph cannot be read; BuildCancelled.
    """
    spec = request.spec
    child = _child(request, cancel)
    graph = child.call("enginefarm.graph.model.skeleton:digest", str(request.onnx)).text
    key = stage_key(spec=spec.model_dump(mode="json", exclude={"onnx_digest"}), graph=graph)
    to_build = RefitAttempt(None, None, {KEY: key})
    found = _found(site, spec.precision.name, key, policy)
    if found is None:
        return to_build
    report("build", 0, None, f"refit of {found.plan.digest[:12]}")
    try:
        return _refitted(site, job, request, found, cancel)
    except BuildCancelled:
        raise
    except EnginefarmError as error:
        why = f"{error.what} ({error.why})" if error.why else error.what
        report("build", 0, None, f"built, and not refitted: {why}")
        return to_build._replace(said=f"built, and not refitted: {why}")


def remember(site: Site, job: Job, built: StageRecord, policy: SigningPolicy | None) -> None:
    """Records the skeleton of a plan that was built. An earlier one was of no use any more."""
    graph = job.prepared.graph
    outputs = {"plan": built.outputs["plan"], "model": graph.model}
    record = StageRecord(
        stage=_stage(job.spec.precision.name),
        key=str(built.values[KEY]),
        outputs=outputs if graph.data is None else {**outputs, "data": graph.data},
        values={"plan_key": built.key, "opset": graph.opset},
        seconds=0,
        created_at=datetime.now(UTC),
    )
    site.store.put_stage(record if policy is None else policy.sign(record))


def named_by(record: StageRecord) -> Refit | None:
    """What the record of a plan says to hosts that may refit it themselves."""
    weights = record.outputs.get("weights")
    if weights is None:
        return None
    return Refit(skeleton=BlobRef.model_validate(record.values[PLAN]), weights=weights)


def _stage(precision: str) -> str:
    return f"skeleton-{precision}"


def _found(site: Site, precision: str, key: str, policy: SigningPolicy | None) -> Skeleton | None:
    """None if the store has no such plan, or if its records are damaged or untrusted."""
    record = found_record(site, _stage(precision), key)
    if record is None:
        return None
    built = found_record(site, f"plan-{precision}", str(record.values.get("plan_key")))
    if built is None or (policy and not (policy.trusts(record) and policy.trusts(built))):
        return None
    if not all(healed(site, ref) for ref in record.outputs.values()):
        return None
    try:
        said = {name: built.values[name] for name in ("tensors", "seconds")}
        output = BuildOutput.model_validate({"plan": "engine.plan", **said})
        graph, plan = onnx_ref_of(record), built.outputs["plan"]
    except (KeyError, ValueError):
        return None
    same = record.outputs.get("plan") == plan
    return Skeleton(plan, graph, built.outputs.get("layers"), output) if same else None


def _refitted(
    site: Site, job: Job, request: BuildRequest, found: Skeleton, cancel: threading.Event
) -> RefitAttempt:
    """Raises: BuildError where the plan does not take the weights, or is not accurate with them;
    what the store and the device raise."""
    began = time.monotonic()
    folder = request.work_dir.with_name("refit").absolute()
    folder.mkdir()
    plan, dest = folder / "skeleton.plan", folder / "engine.plan"
    clone_checked(site.cache.ensure(site.store, found.plan), plan, found.plan)
    weights = folder / "weights.safetensors"
    order = RefitOrder(
        plan=plan,
        weights=weights,
        dest=dest,
        toolchain=request.spec.toolchain.name,
        plugins=request.plugins,
    )
    before = materialize(site, found.graph, folder / "before")
    names, made = _set(request, order, before, folder / "first", cancel)
    reference = site.cache.ensure(site.store, job.prepared.reference).absolute()
    budget = job.budget or DEFAULT_BUDGETS[request.spec.precision.name]
    figures = job.prepared.verification
    why = refused(request, dest, reference, budget, figures, folder / "verify")
    if why:
        raise BuildError("refit: the plan with the new weights is not accurate", why=why)
    # In another process, as on a host.
    again = order.model_copy(update={"dest": folder / "again.plan"})
    refit(again, folder / "again", request.spec.label, cancel)
    repeats = sha256_file(again.dest) == sha256_file(dest)
    seconds = time.monotonic() - began
    size, whole = weights.stat().st_size, dest.stat().st_size
    said = (
        f"refitted from {found.plan.digest[:12]} and verified in {seconds:.1f} s, "
        f"{made.seconds:.2f} s of it one refit; its build took {found.built.seconds:.1f} s. "
        f"{len(names)} weights of {size:,} bytes are set, the plan has {whole:,}"
    )
    output = BuildOutput(
        plan=dest,
        tensors=found.built.tensors,
        seconds=seconds,
        log=folder / "first" / LOG_NAME,
        layers=found.layers and site.cache.ensure(site.store, found.layers),
    )
    if repeats and size < whole:
        return RefitAttempt(output, weights, {PLAN: found.plan.model_dump(mode="json")}, said)
    why = "the weights are no smaller" if repeats else "a second refit made other bytes"
    return RefitAttempt(output, None, {}, f"{said}; hosts download it whole, because {why}")


def _set(
    request: BuildRequest, order: RefitOrder, before: Path, folder: Path, cancel: threading.Event
) -> tuple[tuple[str, ...], RefitResult]:
    """Writes the weights that differ, and refits. Returns their names.

    TensorRT may have merged a weight that changes with one that does not: that one is set too.
    """

    def once(others: tuple[str, ...]) -> tuple[tuple[str, ...], RefitResult]:
        wanted = WeightsOrder(
            before=before, after=request.onnx.absolute(), dest=order.weights, others=others
        )
        child = _child(request, cancel)
        written = child.ask("enginefarm.graph.model.skeleton:write_weights", wanted, WeightNames)
        return written.names, refit(order, folder, request.spec.label, cancel)

    names, made = once(())
    if made.missing:
        names, made = once(made.missing)
    if made.missing:
        raise BuildError(f"refit: TensorRT also needs weight {made.missing[0]!r}")
    return names, made


def _child(request: BuildRequest, cancel: threading.Event) -> Child:
    return Child(what=f"refit {request.spec.label}", error=KINDS, cancel=cancel)
