"""How fast a recipe's engines are on one GPU: the newest figures, where a pull can read them.

benchmarks/speeds/<recipe>/<gpu>.json    Speeds

The tables are Parquet, which a host that only pulls cannot read, and hold every night; a choice
needs the newest night alone. The code that appends rows writes this too. Engines are named by the
first digits of their spec: whole digests would hold their bytes against gc. docs/decisions/0191.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from enginefarm.errors import CorruptBlob, NewerVersion
from enginefarm.schema import Frozen, Moment
from enginefarm.store.reading import LOG, parsed
from enginefarm.store.reading import read as read_document
from enginefarm.tables.clocks import clocks_differ

if TYPE_CHECKING:
    from enginefarm.store.s3 import ObjectStore
    from enginefarm.tables.rows import BenchmarkRow

PREFIX = "benchmarks/speeds/"
SHORT = 16
MOST_ENGINES = 64
"""For one recipe and GPU; the oldest figures are removed."""
REPAIR = "enginefarm fsck --repair removes it; the next measurement writes it again"

Goal = Literal["latency", "throughput"]


class Speed(Frozen):
    """One stable measurement, and all that has to be equal before two are compared."""

    measured_at: Moment
    runtime: str
    gpu_name: str = ""
    host_class: str = ""
    profile: str
    batch: int = Field(ge=1)
    shapes: str = ""
    harness: str = ""
    harness_flags: str = ""
    cuda_graph: bool = False
    clocks_locked: bool | None = None
    power_limit_w: float | None = None
    power_state: str = ""
    throttle_reasons: str = ""
    sm_clock_mhz: float | None = None
    latency_ms_median: float = Field(gt=0)
    latency_ms_p99: float | None = None
    samples_per_s: float | None = None

    @property
    def condition(self) -> tuple[object, ...]:
        """Equal, or the two are not alike. Toolchain and precision are what is chosen between."""
        return tuple(getattr(self, name) for name in ALIKE)

    @property
    def words(self) -> str:
        graph = ", CUDA graph" if self.cuda_graph else ""
        return f"batch {self.batch}, profile {self.profile}{graph}, {self.harness}"


ALIKE = (
    "gpu_name",
    "host_class",
    "profile",
    "batch",
    "shapes",
    "harness",
    "harness_flags",
    "cuda_graph",
    "clocks_locked",
    "power_limit_w",
    "power_state",
    "throttle_reasons",
)


class Speeds(Frozen):
    """Spec (its first digits) -> its newest stable measurement under each condition."""

    schema_version: int = 1
    of: dict[str, tuple[Speed, ...]] = Field(default_factory=dict[str, tuple[Speed, ...]])

    def engine(self, spec_digest: str) -> tuple[Speed, ...]:
        return self.of.get(spec_digest[:SHORT], ())


class Ranking(Frozen):
    """Engines that were measured alike, best first; words say under which condition."""

    best_first: tuple[tuple[str, Speed], ...]
    words: str


def key(recipe: str, gpu: str) -> str:
    return f"{PREFIX}{recipe}/{gpu}.json"


def read(objects: ObjectStore, recipe: str, gpu: str) -> Speeds:
    """Empty where nothing was ever measured. Raises: CorruptBlob, and what the store raises."""
    return read_document(objects, key(recipe, gpu), Speeds, REPAIR) or Speeds()


def remember(objects: ObjectStore, rows: Iterable[BenchmarkRow]) -> None:
    """Takes the stable measurements of engines out of the rows. Safe while others do the same."""
    found: defaultdict[tuple[str, str], dict[str, list[Speed]]] = defaultdict(dict)
    for row in rows:
        speed = _speed(row)
        if speed is not None and row.spec_digest and row.gpu:
            of = found[row.recipe, row.gpu]
            of.setdefault(row.spec_digest[:SHORT], []).append(speed)
    for (recipe, gpu), of in found.items():
        name = key(recipe, gpu)
        objects.update(name, partial(_merged, name, of))


def _merged(name: str, new: Mapping[str, Sequence[Speed]], there: bytes | None) -> bytes | None:
    """The document with the new measurements; None for one that is not ours to write."""
    try:
        before = Speeds() if there is None else parsed(name, there, Speeds, REPAIR)
    except CorruptBlob as error:  # what was measured before is lost; what is new is not
        LOG.warning("note: replaced: %s", error.what)
        before = Speeds()
    except NewerVersion as error:  # the rows are in the tables
        LOG.warning("note: not added to: %s", error.what)
        return None
    of = {**before.of}
    for spec, speeds in new.items():
        known = sorted((*of.get(spec, ()), *speeds), key=lambda one: one.measured_at)
        of[spec] = tuple({one.condition: one for one in known}.values())
    order = sorted(of, key=lambda spec: max(one.measured_at for one in of[spec]))
    return Speeds(of={spec: of[spec] for spec in order[-MOST_ENGINES:]}).canonical_json()


def _speed(row: BenchmarkRow) -> Speed | None:
    """None for a row that is not a stable measurement of an engine."""
    if row.outcome != "measured" or row.cov_verdict != "stable" or not row.latency_ms_median:
        return None
    same = {name: getattr(row, name) for name in ("measured_at", "runtime", "sm_clock_mhz")}
    alike = {name: getattr(row, name) for name in ALIKE if name != "cuda_graph"}
    return Speed(
        **same,
        **alike,
        cuda_graph=bool(row.cuda_graph),
        latency_ms_median=row.latency_ms_median,
        latency_ms_p99=row.latency_ms_p99,
        samples_per_s=row.throughput_samples_per_s,
    )


def rank(
    measured: Mapping[str, Collection[Speed]], goal: Goal, batch: int | None = None
) -> Ranking | None:
    """The engines by one figure, under the condition that most of them were measured under.

    measured: by whatever names an engine. batch: only this one; None: the smallest for latency
    and the largest for throughput, where several cover as many engines.
    None where no engine was measured so.
    """
    by_condition: defaultdict[tuple[object, ...], dict[str, Speed]] = defaultdict(dict)
    for engine, speeds in measured.items():
        for one in speeds:
            usable = goal == "latency" or one.samples_per_s is not None
            if usable and batch in (None, one.batch):
                by_condition[one.condition][engine] = one
    groups = [alike for found in by_condition.values() if (alike := _one_clock(found))]
    if not groups:
        return None
    sign = 1 if goal == "latency" else -1

    def prefer(group: dict[str, Speed]) -> tuple[object, ...]:
        first = next(iter(group.values()))
        newest = max(one.measured_at for one in group.values()).timestamp()
        return (-len(group), sign * first.batch, first.cuda_graph, -newest)

    chosen = min(groups, key=prefer)
    figure = FIGURES[goal]
    best_first = sorted(chosen.items(), key=lambda item: (figure(item[1]), item[0]))
    return Ranking(best_first=tuple(best_first), words=next(iter(chosen.values())).words)


FIGURES: dict[Goal, Callable[[Speed], float]] = {
    "latency": lambda one: one.latency_ms_median,
    "throughput": lambda one: -(one.samples_per_s or 0.0),
}
"""Goal -> what is smallest for the best engine."""


def _one_clock(found: Mapping[str, Speed]) -> dict[str, Speed]:
    """The largest group whose SM clocks agree: two power states are not alike."""
    groups: list[dict[str, Speed]] = [
        {
            name: one
            for name, one in found.items()
            if clocks_differ(center.sm_clock_mhz, one.sm_clock_mhz) is None
        }
        for center in found.values()
    ]
    return max(groups, key=len, default=dict[str, Speed]())


def times_faster(narrow: Iterable[Speed], wide: Iterable[Speed]) -> tuple[float, str] | None:
    """How many times faster the first is than the second, where that is most, and under which
    condition; None where the two were never measured alike."""
    others = {one.condition: one for one in wide}
    ratios = [
        (other.latency_ms_median / one.latency_ms_median, one.words)
        for one in narrow
        if (other := others.get(one.condition)) is not None
        and clocks_differ(one.sm_clock_mhz, other.sm_clock_mhz) is None
    ]
    return max(ratios, default=None)
