"""The state of a recipe before anything runs: what is wanted, skipped and already built."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pydantic import Field

from enginefarm.documents.comparing import absent, judge
from enginefarm.documents.gpus import by_nvml_name
from enginefarm.documents.manifest import Manifest
from enginefarm.documents.recipe import Recipe
from enginefarm.documents.spec import BlobRef, BuildSpec, OnnxRef, PrecisionUse, ToolUse
from enginefarm.errors import SourceError, ToolchainError, did_you_mean
from enginefarm.graph.sources import source
from enginefarm.host.detect import first_gpu
from enginefarm.planning import graphs, outcome, plan, stages
from enginefarm.planning.outcome import Outcome
from enginefarm.schema import Frozen
from enginefarm.store.site import Site
from enginefarm.toolchains import check, installed
from enginefarm.toolchains.missing_operators import lacking

EXPORT_FIRST = "the model was not exported with these versions and this source yet"
VERIFY_AGAIN = "the engine is built; its verification runs again, as data or settings changed"
NO_MANIFEST = "no whole engine of this spec is in the store"

UNKNOWN_MODEL = plan.Model(
    onnx=OnnxRef(model=BlobRef(digest="0" * 64, size_bytes=0), opset=0),
    exporter=ToolUse(name="none", version="0"),
    slimmer=ToolUse(name="none", version="0"),
)
"""Stands for a model that is not exported yet, where only a target's options are asked about."""


class PlannedBuild(Frozen):
    """One target, its spec once the model is known, and whether its engine is there."""

    target: plan.BuildTarget
    spec: BuildSpec | None
    cached: bool
    reason: str
    impossible: bool = Field(
        default=False, description="The toolchain lacks an operator for this GPU and precision."
    )
    over_budget: bool = Field(
        default=False, description="The engine is built, but over the recipe's current budget."
    )


class Survey(Frozen):
    recipe: str
    model: plan.Model | None
    builds: tuple[PlannedBuild, ...]
    skipped: tuple[plan.Skip, ...]

    @property
    def complete(self) -> bool:
        """Every engine wanted is in the store: nothing has to run."""
        return all(planned.cached for planned in self.builds)


def local_offers() -> tuple[plan.Offer, ...]:
    """What this machine can build with no worker: for any GPU with the cross toolchains that
    are installed, and for the GPU that it has with the native ones too."""
    offers: list[plan.Offer] = []
    crosses = installed(cross_only=True)
    gpu = first_gpu()
    row = by_nvml_name(gpu.name) if gpu else None
    if row is not None:
        natives = tuple(t for t in installed(cross_only=False) if t not in crosses)
        if natives:
            offers.append(plan.Offer(gpu=row.label, pool=row.work_pool, toolchains=natives))
    if crosses:
        offers.append(plan.Offer(gpu=None, pool=plan.CROSS_POOL, toolchains=crosses))
    return tuple(offers)


def survey(
    site: Site,
    recipe: Recipe,
    offers: Sequence[plan.Offer],
    listed: Collection[str] | None = None,
) -> Survey:
    """Reads the store and runs nothing. An engine is cached if its manifest, its index entry and
    its blobs exist: two stage records, one listing, and a manifest for each listed engine.

    listed: the spec digests that the store's index has for the recipe; None: they are listed here.
    Raises: what plan.targets raises; StoreError.
    """
    wanted = _buildable(recipe, plan.targets(recipe, offers))
    model = stages.known_model(site, recipe)
    if model is None:
        builds = tuple(
            PlannedBuild(target=target, spec=None, cached=False, reason=EXPORT_FIRST)
            for target in wanted.wanted
        )
    else:
        builds = _with_specs(site, recipe, wanted.wanted, model, listed)
    return Survey(recipe=recipe.name, model=model, builds=builds, skipped=wanted.skipped)


def check_source(recipe: Recipe) -> None:
    """Finds in a second what the export would find later: a file that is not a model, and inputs
    that the model does not have.

    Raises: SourceError.
    """
    found = source(recipe.source.kind).inputs(recipe.source, recipe.root)
    unknown = [one.name for one in recipe.inputs if found is not None and one.name not in found]
    if found is None or not unknown:
        return
    raise SourceError(
        f"inputs: the model has no input called {', '.join(unknown)}",
        why=f"its inputs are {', '.join(found)}" if found else "it has no inputs",
        fix=did_you_mean(unknown[0], found) or "list exactly the inputs that the model uses",
    )


def cached_outcomes(site: Site, recipe: Recipe, found: Survey) -> list[Outcome]:
    """One outcome for each engine that is already built, and for each that is not built."""
    manifests = [
        site.store.manifest(planned.spec.digest)
        for planned in found.builds
        if planned.cached and planned.spec
    ]
    rows = [
        outcome.of_manifest(recipe.name, manifest, "cached") for manifest in manifests if manifest
    ]
    rows += [outcome.of_skip(recipe.name, skip) for skip in found.skipped]
    return outcome.in_order(recipe, rows)


def _buildable(recipe: Recipe, found: plan.Targets) -> plan.Targets:
    """Asks each target's toolchain whether it can build it, before hours of work are spent.

    Raises: ToolchainError where that leaves nothing to build, unless the recipe allows to skip.
    """
    wanted: list[plan.BuildTarget] = []
    refusals = plan.Refusals()
    for target in found.wanted:
        asked = plan.resolve(
            recipe, target, UNKNOWN_MODEL, PrecisionUse(name=target.precision, tools=())
        )
        try:
            check(asked)
        except ToolchainError as error:
            refusals.add(target.gpu, target.precision, error, recipe.allow_skip)
        else:
            wanted.append(target)
    refusals.raise_if_nothing_is_left(wanted)
    return plan.Targets(wanted=tuple(wanted), skipped=(*found.skipped, *refusals.skips))


def _with_specs(
    site: Site,
    recipe: Recipe,
    wanted: Sequence[plan.BuildTarget],
    model: plan.Model,
    listed: Collection[str] | None,
) -> tuple[PlannedBuild, ...]:
    uses = {name: graphs.precision_use(recipe, name) for name in recipe.precisions}
    specs = [plan.resolve(recipe, target, model, uses[target.precision]) for target in wanted]
    whole = site.store.whole(recipe.name, [spec.digest for spec in specs], listed)
    figures = stages.figures_key(recipe, model.outputs) if whole else ""
    return tuple(
        _possible(_standing(recipe, target, spec, whole.get(spec.digest), figures), model)
        for target, spec in zip(wanted, specs, strict=True)
    )


def _possible(planned: PlannedBuild, model: plan.Model) -> PlannedBuild:
    """Marks an engine that its toolchain is known not to build for this GPU and precision."""
    target, spec = planned.target, planned.spec
    if planned.cached or spec is None:
        return planned
    lack = lacking(target.toolchain.name, spec.gpu, target.precision, model.operators)
    if lack is None:
        return planned
    return planned.model_copy(update={"reason": str(lack), "impossible": True})


def _standing(
    recipe: Recipe,
    target: plan.BuildTarget,
    spec: BuildSpec,
    manifest: Manifest | None,
    figures: str,
) -> PlannedBuild:
    """An engine counts as cached only while it is within the recipe's current budget."""
    planned = PlannedBuild(target=target, spec=spec, cached=False, reason=NO_MANIFEST)
    if manifest is None:
        return planned
    budget = recipe.budget(target.precision)
    verified = manifest.verification
    missing = absent(verified.outputs, budget)
    # Another recipe's engine that this one shares: its own recipe decides how it is verified.
    if manifest.recipe == recipe.name and verified.asked != figures:
        return planned.model_copy(update={"reason": VERIFY_AGAIN})
    if missing:
        lacks = f"{VERIFY_AGAIN}: the budget needs {', '.join(missing)}"
        return planned.model_copy(update={"reason": lacks})
    over = judge(verified.outputs, budget)
    if over:
        reason = f"accuracy: {'; '.join(over)}"
        return planned.model_copy(update={"reason": reason, "over_budget": True})
    return planned.model_copy(
        update={"cached": True, "reason": "already built with these settings"}
    )
