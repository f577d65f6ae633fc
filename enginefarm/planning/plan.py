"""Recipe -> what is to be built. Pure: no file, no network, no library of the farm.

`targets` crosses GPUs with precisions and refuses what cannot be; `resolve` turns one
target into a BuildSpec once the model's ONNX digest is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from enginefarm import toolchains
from enginefarm.documents.gpus import gpu
from enginefarm.documents.recipe import Profile, Recipe, TensorSpec
from enginefarm.documents.spec import (
    BuildSpec,
    GpuTarget,
    MinOptMax,
    OnnxRef,
    PrecisionUse,
    ShapeProfile,
    ToolchainId,
    ToolUse,
)
from enginefarm.errors import EnginefarmError, GpuError, RecipeError, ToolchainError
from enginefarm.names import TOOLCHAINS, PrecisionName
from enginefarm.schema import Digest, Frozen, Name

CROSS_POOL = "cpu"
"""Work pool of the machines that cross-build."""


class Offer(Frozen):
    """What one worker offers: a GPU label, and the toolchains it can build with."""

    gpu: Name | None = Field(
        default=None, description="None: a worker without a GPU, for any label."
    )
    pool: Name = CROSS_POOL
    toolchains: tuple[ToolchainId, ...]


class BuildTarget(Frozen):
    """One engine wanted: where it is built and with what."""

    gpu: Name
    precision: PrecisionName
    toolchain: ToolchainId
    pool: Name

    @property
    def label(self) -> str:
        return f"{self.gpu}/{self.precision}"


class Skip(Frozen):
    """A combination that is not built: the recipe allows to leave it out, or it is refused.

    What is refused fails by itself, and the other combinations are built all the same.
    """

    gpu: Name
    precision: PrecisionName
    reason: str
    exit_code: int = Field(default=0, description="Of the refusal; 0: the recipe allows it.")

    @property
    def refused(self) -> bool:
        return self.exit_code != 0


class Targets(Frozen):
    wanted: tuple[BuildTarget, ...]
    skipped: tuple[Skip, ...]


class Refusals:
    """Collects what cannot be built, so that one impossible GPU does not hide the others."""

    def __init__(self) -> None:
        self.skips: list[Skip] = []
        self._first: EnginefarmError | None = None

    def add(
        self, label: Name, precision: PrecisionName, error: EnginefarmError, allowed: bool
    ) -> None:
        """allowed: whether the recipe allows to skip it."""
        refusal = f"{type(error).__name__}: {error}"
        reason = (error.why or error.what) if allowed else refusal
        code = 0 if allowed else error.exit_code
        self.skips.append(Skip(gpu=label, precision=precision, reason=reason, exit_code=code))
        if not allowed:
            self._first = self._first or error

    def raise_if_nothing_is_left(self, wanted: Sequence[BuildTarget]) -> None:
        """Raises: the first refusal, where no combination is left to build."""
        if self._first is not None and not wanted:
            raise self._first


class Model(Frozen):
    """The slimmed FP32 graph, and how it came to be."""

    onnx: OnnxRef
    exporter: ToolUse
    slimmer: ToolUse
    plugins: tuple[Digest, ...] = ()
    outputs: tuple[str, ...] = ()
    operators: dict[str, str] = Field(
        default_factory=dict, description="Each operator -> the name of its first node."
    )
    notes: tuple[str, ...] = Field(
        default=(), description="What was changed or left out on the way, for people."
    )


def targets(recipe: Recipe, offers: Sequence[Offer]) -> Targets:
    """GPUs × precisions of the recipe, each with its toolchain and work pool.

    A precision that a GPU lacks, and a target that nobody can build, is refused by itself (or
    skipped where the recipe says `allow_skip` and the GPU lacks it).
    Raises: GpuError for an unknown label; the first refusal where nothing is left to build.
    """
    wanted: list[BuildTarget] = []
    refusals = Refusals()
    for label in recipe.gpus:
        row = gpu(label)
        for precision in recipe.precisions:
            lacks = row.refuses(precision)
            try:
                if lacks is not None:
                    raise GpuError(
                        f"precisions: {precision} cannot be built for {label}",
                        why=lacks,
                        fix="drop the precision or the GPU, or set `allow_skip: true`",
                    )
                toolchain, pool = _choose(recipe, label, offers)
            except (GpuError, ToolchainError) as error:
                allowed = lacks is not None and recipe.allow_skip
                refusals.add(label, precision, error, allowed)
                continue
            wanted.append(
                BuildTarget(gpu=label, precision=precision, toolchain=toolchain, pool=pool)
            )
    refusals.raise_if_nothing_is_left(wanted)
    return Targets(wanted=tuple(wanted), skipped=tuple(refusals.skips))


def _choose(recipe: Recipe, label: str, offers: Sequence[Offer]) -> tuple[ToolchainId, str]:
    """A native toolchain on that GPU first, then a cross-build.

    A worker that stands in for a label with no GPU offers the cross toolchain on that
    label's pool; it is preferred over the shared `cpu` pool.
    """
    order = tuple(TOOLCHAINS) if recipe.toolchain == "auto" else (recipe.toolchain,)
    here = [offer for offer in offers if offer.gpu == label]
    anywhere = [offer for offer in offers if offer.gpu is None]
    for name in order:
        for offer in (*here, *(anywhere if toolchains.toolchain(name).cross else ())):
            for toolchain in offer.toolchains:
                if toolchain.name == name:
                    return toolchain, offer.pool
    raise ToolchainError(
        f"toolchain: no worker can build {recipe.name} for {label} with {' or '.join(order)}",
        why="native toolchains need an online worker of that label; "
        + " and ".join(name for name in TOOLCHAINS if toolchains.toolchain(name).cross)
        + " can build on any",
        fix=f"start one: enginefarm worker --gpu {label}; or set `toolchain: auto` and install "
        "enginefarm[farm], which cross-builds",
    )


def resolve(
    recipe: Recipe, target: BuildTarget, model: Model, precision: PrecisionUse
) -> BuildSpec:
    """The one build that this target stands for, with everything that decides its plan."""
    label = GpuTarget(label=target.gpu, compute_capability=gpu(target.gpu).compute_capability)
    carries = toolchains.toolchain(target.toolchain.name).carries
    return BuildSpec(
        salt=recipe.salt,
        onnx_digest=model.onnx.digest,
        exporter=model.exporter,
        slimmer=model.slimmer,
        precision=precision,
        profiles=shape_profiles(recipe),
        gpu=label,
        compute_capabilities=carries(label, target.precision),
        toolchain=target.toolchain,
        builder=recipe.builder.asked,
        plugins=model.plugins,
    )


def shape_profiles(recipe: Recipe) -> tuple[ShapeProfile, ...]:
    """min/opt/max shapes of every input, for each optimization profile."""
    return tuple(
        ShapeProfile(
            name=profile.name,
            shapes={
                tensor.name: MinOptMax(
                    min=shape(tensor, profile, "min"),
                    opt=shape(tensor, profile, "opt"),
                    max=shape(tensor, profile, "max"),
                )
                for tensor in recipe.inputs
            },
        )
        for profile in recipe.profiles
    )


def shape(tensor: TensorSpec, profile: Profile, end: str) -> tuple[int, ...]:
    """The input's shape at `min`, `opt` or `max` of a profile."""
    return tuple(
        dim if isinstance(dim, int) else int(getattr(profile.dims[dim], end))
        for dim in tensor.shape
    )


def narrowed(
    recipe: Recipe, *, gpus: Sequence[str] | None = None, precisions: Sequence[str] | None = None
) -> Recipe:
    """The recipe for fewer GPUs or precisions than it lists, in its own order.

    Raises: RecipeError naming what the recipe does not list.
    """
    changes: Mapping[str, tuple[str, ...]] = {
        field: tuple(name for name in getattr(recipe, field) if name in wanted)
        for field, wanted in (("gpus", gpus), ("precisions", precisions))
        if wanted
    }
    for field, wanted in (("gpus", gpus), ("precisions", precisions)):
        unknown = sorted(set(wanted or ()) - set(getattr(recipe, field)))
        if unknown:
            raise RecipeError(
                f"{field}: {', '.join(unknown)} is not in the recipe {recipe.name}",
                why=f"it lists {', '.join(getattr(recipe, field))}",
                fix=f"choose from these, or add it to the recipe's {field}",
            )
    return recipe.model_copy(update=dict(changes))
