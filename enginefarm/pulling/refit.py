"""Refit: makes an engine on this host from a plan that it has and a file of new weights.

A manifest names both. Whatever comes out is taken only if it has the digest of the manifest's
engine, so a refit saves bytes and never changes what is trusted.
"""

from __future__ import annotations

import threading
import time
from importlib.util import find_spec
from pathlib import Path

from enginefarm.child.call import Child
from enginefarm.child.cancellation import CANCEL
from enginefarm.digest import sha256_file
from enginefarm.documents.manifest import Manifest, Refit
from enginefarm.documents.spec import BlobRef
from enginefarm.errors import BuildCancelled, BuildError, EnginefarmError
from enginefarm.names import TOOLCHAINS, runtime_of
from enginefarm.progress import report
from enginefarm.schema import Frozen
from enginefarm.store.cache import BlobCache
from enginefarm.store.disk import clone_checked
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.site import Site

LOG_NAME = "refit.log"


class RefitOrder(Frozen):
    """What the child is told. weights: a safetensors file. dest: where the plan is to go."""

    plan: Path
    weights: Path
    dest: Path
    toolchain: str
    plugins: tuple[Path, ...] = ()


class RefitResult(Frozen):
    """missing: weights that must be set too; then no plan was written."""

    seconds: float
    missing: tuple[str, ...] = ()


def refit(
    order: RefitOrder, folder: Path, what: str, cancel: threading.Event = CANCEL
) -> RefitResult:
    """One refit in a child process, within the limits of a build.

    Raises: BuildError for a plan that does not take these weights; HostError.
    """
    child = Child(
        what=f"refit {what}",
        error=BuildError,
        folder=folder,
        log_name=LOG_NAME,
        fixed_addresses=True,
        cancel=cancel,
    )
    return child.ask(TOOLCHAINS[order.toolchain].refit, order, RefitResult)


def deliver(store: EngineStore, cache: BlobCache, manifest: Manifest, named: Refit) -> str:
    """Puts the engine into the cache if this host can refit it. Says what was saved, or why the
    engine has to be downloaded whole."""
    began = time.monotonic()
    try:
        why = _obstacle(cache, manifest, named) or _made(store, cache, manifest, named)
    except BuildCancelled:
        raise
    except EnginefarmError as error:
        why = f"{error.what}: {error.why}" if error.why else error.what
    if why:
        return f"downloaded whole, and not refitted: {why}"
    saved = manifest.engine.size_bytes - named.weights.size_bytes
    return (
        f"refitted from {named.skeleton.digest[:12]} in {time.monotonic() - began:.1f} s: "
        f"{named.weights.size_bytes:,} bytes of weights were fetched, {saved:,} fewer than the "
        "engine has"
    )


def _obstacle(cache: BlobCache, manifest: Manifest, named: Refit) -> str:
    """Why it is not worth a try; nothing is fetched to find out."""
    toolchain = manifest.spec.toolchain.name
    if not TOOLCHAINS[toolchain].refit:
        return f"this version cannot refit plans of {toolchain}"
    if manifest.spec.plugins:
        return "the engine needs plugin libraries"
    if not any(map(find_spec, runtime_of(toolchain)[1].bindings)):
        return f"the Python bindings of {toolchain} are not installed (pip install enginefarm[gpu])"
    if not cache.has(named.skeleton):
        return f"the plan {named.skeleton.digest[:12]} is not in the cache of this host"
    return ""


def _made(store: EngineStore, cache: BlobCache, manifest: Manifest, named: Refit) -> str:
    """Fetches the weights and refits. Returns why the result is not taken; empty if it is."""
    name = f"{manifest.recipe} {manifest.spec.label}"
    report("refit", 0, None, name)
    with Site(store, cache).scratch() as scratch:
        folder = scratch.absolute()
        skeleton = folder / "skeleton.plan"
        clone_checked(cache.path(named.skeleton), skeleton, named.skeleton)
        order = RefitOrder(
            plan=skeleton,
            weights=cache.ensure(store, named.weights).absolute(),
            dest=folder / "engine.plan",
            toolchain=manifest.spec.toolchain.name,
        )
        done = refit(order, folder / "refit", name)
        if done.missing:
            return f"the weights lack {done.missing[0]!r}"
        size = order.dest.stat().st_size
        if BlobRef(digest=sha256_file(order.dest), size_bytes=size) != manifest.engine:
            return "this host's TensorRT makes other bytes than the farm's did"
        cache.add(order.dest)
    report("refit", 1, 1, name)
    return ""
