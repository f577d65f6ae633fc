"""What a signing process trusts: only what trusted builders have recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from enginefarm.documents.spec import BlobRef, BuildSpec
from enginefarm.documents.stage import StageRecord
from enginefarm.errors import PlanDamaged, SignatureRejected
from enginefarm.host.plan_header import read_plan_header
from enginefarm.names import runtime_of
from enginefarm.store.site import Site
from enginefarm.store.statements import SigningPolicy

if TYPE_CHECKING:
    from enginefarm.building.job import BuildResult, Job

SMALLER_WORKSPACE = "workspace_mib_after_out_of_memory"


def require_signed_record(
    site: Site,
    job: Job,
    built: BuildResult,
    policy: SigningPolicy,
    said: Callable[[StageRecord, str], BuildResult],
) -> None:
    """Raises: SignatureRejected unless a signed record of this build says what `built` says.

    said: what a record says to the GPU that asks for it.
    """
    record = site.store.stage(f"plan-{job.spec.precision.name}", built.plan_key)
    details = {name: text for name, text in built.details.items() if name != SMALLER_WORKSPACE}
    why = ""
    if built.plan_key not in _plan_keys(job.spec, built):
        why = "the record that it names is of another spec"
    elif record is None or not policy.trusts(record):
        why = "no record that a trusted builder signed says that this plan was built"
    elif said(record, job.spec.gpu.label) != built.model_copy(update={"details": details}):
        why = "the signed record differs from this result"
    if why:
        raise SignatureRejected(
            f"signing: {job.recipe} {job.spec.label} ({built.plan.digest[:12]}) is not signed",
            why=why,
            fix="build it again on a machine that has the signing key",
        )


def _plan_keys(spec: BuildSpec, built: BuildResult) -> frozenset[str]:
    """Keys of the builds that may stand for a spec: as asked, for its GPU alone, and with the
    smaller workspace of the retry after an out-of-memory."""
    asked = [spec]
    smaller = built.details.get(SMALLER_WORKSPACE)
    if isinstance(smaller, int):
        builder = spec.builder.model_copy(update={"workspace_mib": smaller})
        asked.append(spec.model_copy(update={"builder": builder}))
    alone = [one.model_copy(update={"compute_capabilities": ()}) for one in asked]
    return frozenset(one.plan_key for one in (*asked, *alone))


def require_plan_of(site: Site, spec: BuildSpec, plan: BlobRef) -> None:
    """Compares a portable plan's header with the spec; other plans' headers are not known.

    Raises: PlanDamaged.
    """
    if not runtime_of(spec.toolchain.name)[1].portable:
        return
    header = read_plan_header(site.cache.ensure(site.store, plan))
    wanted = (spec.toolchain.build, spec.gpu.compute_capability)
    if wanted[0] != header.version or wanted[1] not in header.compute_capabilities:
        raise PlanDamaged(
            f"{spec.label}: the plan's header names another build than the spec",
            why=f"it says TensorRT-RTX {header.version} for "
            f"{', '.join(header.compute_capabilities)}; the spec, {wanted[0]} for {wanted[1]}",
            fix="enginefarm fsck --bytes --repair, then build the recipe again",
        )
