"""One profile of an engine, as a fresh process is asked to measure it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from enginefarm.bench.shapes import Point, points
from enginefarm.documents.manifest import Manifest
from enginefarm.errors import EngineRunError
from enginefarm.schema import Frozen
from enginefarm.store.site import Site, plugin_libraries


class OneProfile(Frozen):
    """shapes: of the inputs that live on the GPU; reference: inputs of any batch."""

    plan: Path
    reference: Path
    toolchain: str
    profile: int = 0
    shapes: dict[str, tuple[int, ...]]
    plugins: tuple[Path, ...] = ()


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
