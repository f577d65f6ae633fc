"""The layers of an engine in the store, with the times of its last profile.

benchmarks/layers/<spec_digest>.json    LayerTimes: the last profile of that engine

The layers themselves are a blob that the manifest names. A profile is measured later, on the
GPU, so it is a separate document; gc deletes it with the engine.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from enginefarm.documents.layers import Layers, read_layers
from enginefarm.documents.manifest import Manifest
from enginefarm.errors import EnginefarmError, StoreMissing
from enginefarm.schema import Frozen, Moment
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.reading import read
from enginefarm.tables.layer_diff import LayerDiff, diff

PREFIX = "benchmarks/layers/"
REPAIR = "enginefarm fsck --repair removes it; the next profile writes it again"


class LayerTimes(Frozen):
    """What TensorRT's profiler said of an engine: the median of each layer, in milliseconds.

    engine: the first digits of its digest. Whole, it would hold the engine's bytes against gc.
    """

    schema_version: int = 1
    engine: str = Field(max_length=16)
    gpu_name: str = ""
    driver: str = ""
    shapes: str = ""
    passes: int = Field(ge=1)
    ms: dict[str, float]
    measured_at: Moment


def key(spec_digest: str) -> str:
    return f"{PREFIX}{spec_digest}.json"


def remember(store: EngineStore, manifest: Manifest, times: LayerTimes) -> None:
    """Replaces the engine's profile by a newer one."""
    store.objects.put(key(manifest.spec_digest), times.canonical_json())


def times_of(store: EngineStore, manifest: Manifest) -> LayerTimes | None:
    """The last profile of exactly these bytes, or None. Raises: CorruptBlob."""
    times = read(store.objects, key(manifest.spec_digest), LayerTimes, REPAIR)
    same = times is not None and manifest.engine.digest.startswith(times.engine)
    return times if same else None


def layers_of(store: EngineStore, manifest: Manifest) -> Layers:
    """Raises: StoreMissing when none were stored at its build; CorruptBlob."""
    where = f"{manifest.recipe} {manifest.spec.label}"
    if manifest.build.layers is None:
        raise StoreMissing(
            f"{where}: no layers were stored when it was built",
            why=f"{manifest.spec.toolchain.name} {manifest.spec.toolchain.build} wrote none: the "
            "engine is older than this feature, or its toolchain has none",
            fix="change the recipe's `salt` and build it again",
        )
    found = read_layers(store.read_bytes(manifest.build.layers), f"layers of {where}")
    times = times_of(store, manifest)
    return found if times is None else found.timed(times.ms)


def layers_of_file(path: Path) -> Layers:
    """The layers in an inspector's JSON file. Raises: CorruptBlob."""
    return read_layers(path.read_bytes(), str(path))


def compared(store: EngineStore, before: str | None, after: str | None) -> LayerDiff | str:
    """Two engines of the store by spec digest, layer by layer; or why they cannot be compared."""
    if before is None or after is None:
        return "the benchmark rows do not say which engines were timed"
    if before == after:
        return "both timings are of the same engine, so its layers are the same"
    sides: list[Layers] = []
    for digest in (before, after):
        try:
            manifest = store.manifest(digest)
            if manifest is None:
                return f"the engine {digest[:12]} is no longer in the store"
            sides.append(layers_of(store, manifest))
        except EnginefarmError as error:
            return error.what
    return diff(*sides)
