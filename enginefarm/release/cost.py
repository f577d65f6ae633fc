"""What a million inferences cost on each GPU: a price an hour over what was measured there.

Nothing is guessed: a GPU without a price, or whose engines were not measured as the others
were, is refused by name. Throughput is the harness's, one pass at a time: a server that batches
and overlaps can be cheaper.
"""

from __future__ import annotations

import math
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from enginefarm.documents.gpus import table
from enginefarm.documents.manifest import Manifest
from enginefarm.errors import StoreMissing, UsageError, did_you_mean
from enginefarm.schema import Frozen
from enginefarm.store.budgets import Budgets
from enginefarm.store.engine_store import EngineStore
from enginefarm.tables import speeds
from enginefarm.tables.speeds import Speed

MILLION, HOUR_S = 1_000_000, 3600
Price = Annotated[float, Field(gt=0, le=1e6, strict=True)]
Hosts = Annotated[int, Field(ge=1, le=10_000_000, strict=True)]


class Prices(Frozen):
    """A user's file. fleet: how many GPUs of each kind serve today, for a what-if."""

    currency: str = Field(default="", max_length=10)
    per_hour: dict[str, Price | Hosts] = Field(min_length=1)
    fleet: dict[str, Hosts] = Field(default_factory=dict[str, int])


class CostLimits(Frozen):
    """profile: whose shapes are compared; None: the recipe's first."""

    profile: str | None = None
    p99_ms: float | None = Field(default=None, gt=0)
    min_top1: float | None = Field(default=None, ge=0, le=1)


class Cost(Frozen):
    """The cheapest engine and batch of one GPU that is within the limits."""

    gpu: str
    precision: str
    spec_digest: str
    speed: Speed
    per_hour: float
    per_million: float = Field(description="Inferences are samples, not passes.")


class Costs(Frozen):
    """The cheapest comes first. refused: GPU -> why it has no figure."""

    currency: str
    found: tuple[Cost, ...]
    refused: dict[str, str]
    measured_with: str = ""

    def for_gpu(self, gpu: str) -> Cost:
        """Raises: StoreMissing, which says why this GPU has no figure."""
        for one in self.found:
            if one.gpu == gpu:
                return one
        known(gpu)
        raise StoreMissing(
            f"cost: there is no figure for {gpu}", why=self.refused.get(gpu, UNBUILT)
        )


class Move(Frozen):
    """The same load on other GPUs."""

    before: Cost
    after: Cost
    gpus_before: int
    gpus_after: int

    @property
    def per_hour(self) -> tuple[float, float]:
        return (
            self.gpus_before * self.before.per_hour,
            self.gpus_after * self.after.per_hour,
        )


UNBUILT = "no engine of this model was built for it: add it to the recipe's `gpus`"
UNPRICED = "the file has no price for it: add it under [per_hour]"
MEASURE = "measure them there with `enginefarm bench run RECIPE`, or wait for the nightly"
WORDS = {
    "missing": "it is missing",
    "too_short": "it is empty",
    "dict_type": "it is not a table",
    "extra_forbidden": "a file of prices has no such key",
}


def read_prices(path: Path) -> Prices:
    """Raises: UsageError, which names the file and the field."""
    try:
        given: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # bad TOML and UTF-8 are ValueErrors
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{path}: the prices cannot be read", why=why or "") from None
    try:
        prices = Prices.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"] if not str(part).startswith("constr"))
        what = WORDS.get(first["type"], first["msg"].replace("Input should", "it should"))
        raise UsageError(
            f"{path}: {field or 'the file'}: {what}",
            fix="write [per_hour] with a line for each GPU, such as `l4 = 0.71`",
        ) from None
    for label in (*prices.per_hour, *prices.fleet):
        known(label, f"{path}: ")
    return prices


def known(label: str, where: str = "cost: ") -> None:
    """Raises: UsageError for a label that no GPU has."""
    if label not in table():
        raise UsageError(
            f"{where}{label!r} is not the label of a GPU",
            fix=did_you_mean(label, table()) or "`enginefarm gpus` lists the labels",
        )


def costs(
    store: EngineStore,
    manifests: Sequence[Manifest],
    prices: Prices,
    budgets: Budgets,
    limits: CostLimits | None = None,
) -> Costs:
    """Every GPU that has a price or an engine: its cheapest engine and batch, or why there is none.

    budgets: engines over them are left out. Raises: UsageError for an unknown profile.
    """
    limits = limits or CostLimits()
    if limits.profile not in (None, *(profiles := _profiles(manifests))):
        raise UsageError(
            f"cost --profile: the engines have no profile {limits.profile!r}",
            fix=f"their profiles are: {', '.join(profiles)}",
        )
    by_gpu: dict[str, list[Manifest]] = {gpu: [] for gpu in prices.per_hour}
    for manifest in manifests:
        by_gpu.setdefault(manifest.gpu, []).append(manifest)
    profile = limits.profile or _profiles(manifests)[0]
    rows = {gpu: [*_measured(store, engines, profile)] for gpu, engines in by_gpu.items()}
    harness = _usual_harness(rows)
    found: list[Cost] = []
    refused: dict[str, str] = {}
    for gpu, engines in by_gpu.items():
        price = prices.per_hour.get(gpu)
        if price is None:
            refused[gpu] = UNPRICED
        elif not engines:
            refused[gpu] = UNBUILT
        elif not rows[gpu]:
            refused[gpu] = f"its engines were not measured at profile {profile}: {MEASURE}"
        else:
            best, why = _cheapest(rows[gpu], float(price), harness, budgets, limits)
            if best is None:
                refused[gpu] = why
            else:
                found.append(best)
    found.sort(key=lambda one: (one.per_million, one.gpu))
    return Costs(
        currency=prices.currency,
        found=tuple(found),
        refused=refused,
        measured_with=" ".join(filter(None, harness)) + f", profile {profile}",
    )


def what_if(found: Costs, prices: Prices, before: str, after: str) -> Move:
    """The load of the fleet's GPUs of one kind on another kind, at the cheapest engine of each.

    Raises: UsageError where the file does not say how many there are; StoreMissing.
    """
    count = prices.fleet.get(before)
    if count is None:
        raise UsageError(
            f"cost --move: the file does not say how many {before} there are",
            fix=f"add [fleet] with `{before} = 12`",
        )
    old, new = found.for_gpu(before), found.for_gpu(after)
    share = _rate(old.speed) / _rate(new.speed)
    return Move(
        before=old, after=new, gpus_before=count, gpus_after=max(1, math.ceil(count * share))
    )


Harness = tuple[str, str]
Measured = tuple[Manifest, Speed]


def _profiles(manifests: Iterable[Manifest]) -> list[str]:
    """Their names, in the recipe's order."""
    return [*dict.fromkeys(one.name for manifest in manifests for one in manifest.spec.profiles)]


def _measured(
    store: EngineStore, manifests: Iterable[Manifest], profile: str
) -> Iterator[Measured]:
    """At that profile alone: a sample of another one has another size, and another cost."""
    by_recipe: dict[str, speeds.Speeds] = {}
    for one in manifests:
        if one.recipe not in by_recipe:
            by_recipe[one.recipe] = speeds.read(store.objects, one.recipe, one.gpu)
        for speed in by_recipe[one.recipe].engine(one.spec_digest):
            if speed.samples_per_s and speed.profile == profile:
                yield one, speed


def _usual_harness(rows: Mapping[str, list[Measured]]) -> Harness:
    """The one that most GPUs were measured with: figures of two are not compared."""
    seen: Counter[Harness] = Counter()
    newest: dict[Harness, float] = {}
    for found in rows.values():
        for harness in {(speed.harness, speed.harness_flags) for _, speed in found}:
            seen[harness] += 1
        for _, speed in found:
            key = (speed.harness, speed.harness_flags)
            newest[key] = max(newest.get(key, 0.0), speed.measured_at.timestamp())
    return max(seen, key=lambda one: (seen[one], newest[one]), default=("", ""))


def _cheapest(
    rows: list[Measured], price: float, harness: Harness, budgets: Budgets, limits: CostLimits
) -> tuple[Cost | None, str]:
    alike = [(m, s) for m, s in rows if (s.harness, s.harness_flags) == harness]
    if not alike:
        return None, f"measured with {rows[0][1].harness}, and the other GPUs with {harness[0]}"
    usable = [(m, s) for m, s in alike if _is_sound(m, budgets)]
    if not usable:
        return None, "its engines failed on the GPU, or are over the accuracy budget"
    accurate = [(m, s) for m, s in usable if _is_accurate(m, limits.min_top1)]
    if not accurate:
        measured = [found for m, _ in usable if (found := _top1(m)) is not None]
        highest = f"the highest is {max(measured):.4g}" if measured else "none was measured"
        return None, f"no top-1 accuracy of {limits.min_top1:g} or more: {highest}"
    fast_enough = [(m, s) for m, s in accurate if _is_fast_enough(s, limits.p99_ms)]
    if not fast_enough:
        measured = [s.latency_ms_p99 for _, s in accurate if s.latency_ms_p99 is not None]
        lowest = f"the lowest is {min(measured):.3g} ms" if measured else "none was measured"
        return None, f"no p99 within {limits.p99_ms:g} ms: {lowest}"
    manifest, speed = max(fast_enough, key=lambda item: (_rate(item[1]), item[0].spec_digest))
    cost = Cost(
        gpu=manifest.gpu,
        precision=manifest.precision,
        spec_digest=manifest.spec_digest,
        speed=speed,
        per_hour=price,
        per_million=price / (_rate(speed) * HOUR_S) * MILLION,
    )
    return cost, ""


def _rate(speed: Speed) -> float:
    return speed.samples_per_s or 0.0


def _is_sound(manifest: Manifest, budgets: Budgets) -> bool:
    return manifest.device_verification.status != "failed" and not budgets.over(manifest)


def _is_accurate(manifest: Manifest, least: float | None) -> bool:
    """What was not measured is not enough."""
    return least is None or ((found := _top1(manifest)) is not None and found >= least)


def _top1(manifest: Manifest) -> float | None:
    """On true labels; the worst output counts."""
    outputs = manifest.device_verification.outputs or manifest.verification.outputs
    return min((found for one in outputs if (found := one.top1_accuracy) is not None), default=None)


def _is_fast_enough(speed: Speed, most_ms: float | None) -> bool:
    return most_ms is None or (speed.latency_ms_p99 is not None and speed.latency_ms_p99 <= most_ms)
