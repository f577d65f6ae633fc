"""Which shapes of an engine are measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from enginefarm.documents.manifest import Manifest
from enginefarm.documents.spec import ShapeProfile
from enginefarm.errors import EngineRunError
from enginefarm.graph.samples.feeds import shaped
from enginefarm.graph.verification.reference import read_reference
from enginefarm.run.running import RunRequest
from enginefarm.store.site import Site, plugin_libraries

if TYPE_CHECKING:
    from enginefarm.graph.model.arrays import Arrays


class Point(NamedTuple):
    """One set of shapes to measure."""

    profile: int
    profile_name: str
    shapes: dict[str, tuple[int, ...]]

    @property
    def batch(self) -> int:
        """First dim of the first input; 1 where it has none."""
        first = next(iter(self.shapes.values()), ())
        return first[0] if first else 1

    @property
    def text(self) -> str:
        return " ".join(f"{n}:{'x'.join(map(str, shape))}" for n, shape in self.shapes.items())


def points(profiles: Sequence[ShapeProfile], *, batch_sweep: bool = True) -> list[Point]:
    """Each profile's opt shapes; with batch_sweep also powers of two of the first dim."""
    found: list[Point] = []
    for index, profile in enumerate(profiles):
        opt = {name: shape.opt for name, shape in profile.shapes.items()}
        found.append(Point(index, profile.name, opt))
        for batch in _batches(profile) if batch_sweep else ():
            shapes = {
                name: (batch, *shape.opt[1:]) if _batched(shape) else shape.opt
                for name, shape in profile.shapes.items()
            }
            point = Point(index, profile.name, shapes)
            if point not in found:
                found.append(point)
    return found


def _batched(shape: Any) -> bool:
    return bool(shape.opt) and shape.min[0] != shape.max[0]


def _batches(profile: ShapeProfile) -> list[int]:
    bounds = [shape for shape in profile.shapes.values() if _batched(shape)]
    if not bounds:
        return []
    low, high = max(s.min[0] for s in bounds), min(s.max[0] for s in bounds)
    powers = [1 << exponent for exponent in range(high.bit_length())]
    return sorted({low, high, *(size for size in powers if low <= size <= high)})


class OneProfile(RunRequest):
    """shapes: of the inputs that live on the GPU; reference: inputs of any batch."""

    reference: Path
    shapes: dict[str, tuple[int, ...]]

    def feeds(self) -> Arrays:
        """The inputs in these shapes."""
        return shaped(next(read_reference(self.reference)).inputs, self.shapes)


def first_profile(site: Site, manifest: Manifest) -> tuple[Point, dict[str, Any]]:
    """The first profile's opt shapes, and the fields of OneProfile with its files in the cache.

    Raises: EngineRunError when the manifest names no reference, and what the store raises.
    """
    if manifest.reference is None:
        raise EngineRunError(f"{manifest.spec.label}: its manifest names no reference inputs")
    point = points(manifest.spec.profiles, batch_sweep=False)[0]
    return point, {
        "plan": site.cache.ensure(site.store, manifest.engine),
        "reference": site.cache.ensure(site.store, manifest.reference),
        "toolchain": manifest.spec.toolchain.name,
        "profile": point.profile,
        "shapes": point.shapes,
        "plugins": plugin_libraries(site, manifest.spec),
    }
