"""Whose turn it is, where builds of one machine would be in each other's way."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager

from filelock import FileLock

from enginefarm.documents.spec import BuildSpec
from enginefarm.settings import shown_gpu
from enginefarm.store.disk import writing
from enginefarm.store.site import Site
from enginefarm.toolchains import toolchain

# A builder keeps about one core busy: more of them in parallel only use more memory.
_SLOTS = threading.BoundedSemaphore(os.cpu_count() or 1)


@contextmanager
def turn(site: Site, spec: BuildSpec) -> Generator[None]:
    """A core; and the whole GPU where a toolchain times kernels on it, because a second build
    beside it would be in those times."""
    with ExitStack() as held:
        if not toolchain(spec.toolchain.name).cross:
            held.enter_context(locked(site, f"gpu-{shown_gpu()}"))
        held.enter_context(_SLOTS)
        yield


@contextmanager
def locked(site: Site, name: str) -> Generator[None]:
    """Holds a lock that the kernel releases when this process dies, however it dies."""
    folder = site.cache.root / "locks"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / name):
        yield
