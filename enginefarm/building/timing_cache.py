"""TensorRT's timing cache in the store: the next build reuses the timings of earlier ones.

Timings of one GPU, driver or TensorRT build are wrong on another, so each combination has
a cache of its own, named by a digest of all of them. Merging is TensorRT's own
(`ITimingCache.combine`), done by the build that loaded the cache; what is added here is that
two builds at the same time lose nothing: the second writer merges into what the first
one wrote.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from enginefarm.digest import sha256_bytes
from enginefarm.documents.spec import BuildSpec
from enginefarm.schema import canonical_json
from enginefarm.store.engine_store import EngineStore

PREFIX = "timing-caches/"
HEADER_BYTES = 64


def key_for(spec: BuildSpec, *, gpu_name: str, driver: str) -> str:
    """The key of a cache in the store, of everything that a timing depends on besides the network.

    Flags that change which tactics there are take part; what they were timed for does not."""
    options = spec.builder
    flags = options.model_dump(
        mode="json",
        include={
            "compatibility",
            "version_compatible",
            "sparse_weights",
            "tactic_sources",
            "optimization_level",
        },
    )
    depends = {
        "gpu_name": gpu_name,
        "compute_capability": spec.gpu.compute_capability,
        "toolchain": spec.toolchain.name,
        "toolchain_build": spec.toolchain.build,
        "cuda": spec.toolchain.cuda,
        "driver": driver,
        "os": spec.toolchain.os,
        "arch": spec.toolchain.arch,
        "flags": " ".join(f"{name}={value}" for name, value in sorted(flags.items())),
    }
    return f"{PREFIX}{sha256_bytes(canonical_json(depends))}.cache"


def fetch(store: EngineStore, key: str, dest: Path) -> Path | None:
    """The cache of exactly this combination, in `dest`; None when there is none yet, or its
    bytes are not what was written."""
    found = store.objects.get(key)
    body = None if found is None else _body(found[0])
    if body is None:
        return None
    dest.write_bytes(body)
    return dest


def merge(
    store: EngineStore,
    key: str,
    fresh: Path,
    combine: Callable[[bytes, bytes], bytes | None],
    *,
    loaded: Path | None = None,
) -> None:
    """Puts a build's cache into the store, merged with the one that the store has.

    loaded: the cache that the build started from. While the store still holds that one, the
        build's own contains it, and nothing needs combining.
    combine: (stored, fresh) -> both in one, by the toolchain itself; None when it refuses
        them, in which case the fresh one replaces the stored one.
    Raises: StoreConflict when others keep writing it.
    """
    own = fresh.read_bytes()
    started_from = None if loaded is None else loaded.read_bytes()

    def together(document: bytes | None) -> bytes | None:
        stored = None if document is None else _body(document)
        merged = own
        if stored is not None and stored not in (own, started_from):
            merged = combine(stored, own) or own
        return None if merged == stored else sha256_bytes(merged).encode() + merged

    store.objects.update(key, together)


def _body(document: bytes) -> bytes | None:
    """The bytes behind the digest that they were stored with."""
    digest, body = document[:HEADER_BYTES], document[HEADER_BYTES:]
    return body if sha256_bytes(body).encode() == digest else None
