"""Watch: keeps the engine that fits in a folder, for a server that reads it.

folder/versions/<engine>/model.plan, manifest.json     complete before `current` names it
folder/current -> versions/<engine>                    replaced atomically
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from enginefarm.documents.manifest import Manifest
from enginefarm.errors import EnginefarmError
from enginefarm.pulling.place import copy_out
from enginefarm.pulling.pull import PulledEngine
from enginefarm.store.disk import one_at_a_time, write_atomically, writing

PLAN = "model.plan"
MANIFEST = "manifest.json"


def watch(
    pull: Callable[[], PulledEngine],
    folder: Path,
    *,
    every_s: float,
    stop: threading.Event,
    on_look: Callable[[Manifest, bool], None],
    on_error: Callable[[EnginefarmError], None],
) -> None:
    """Pulls every `every_s` seconds and swaps when the engine has changed, until `stop`.

    on_look receives the engine that the folder has now, and whether that was a swap. on_error
    receives every error; the folder then keeps its engine.
    """
    while not stop.is_set():
        try:
            with writing(folder):  # what the disk refuses now it may take the next time
                pulled = pull()
                swapped = swap(pulled, folder)
                on_look(pulled.manifest, swapped)
        except EnginefarmError as error:
            on_error(error)
        stop.wait(every_s)


def swap(pulled: PulledEngine, folder: Path) -> bool:
    """Points `current` to the engine; returns False if it already does.

    The previous version stays for servers that still read it. Older ones are deleted.
    """
    with one_at_a_time(folder):  # two that watch one folder would delete each other's versions
        return _swapped(pulled, folder)


def _swapped(pulled: PulledEngine, folder: Path) -> bool:
    name = pulled.manifest.engine.digest[:16]
    version = folder / "versions" / name
    current = folder / "current"
    before = current.resolve() if current.is_symlink() else None
    whole = (version / PLAN).exists() and (version / MANIFEST).exists()
    if before == version.resolve() and whole:
        return False
    copy_out(pulled.path, version / PLAN, pulled.manifest.engine)
    write_atomically(version / MANIFEST, pulled.manifest.canonical_json())
    with writing(current):
        new = folder / ".current.new"
        new.unlink(missing_ok=True)
        new.symlink_to(Path("versions") / name)
        new.replace(current)
    for old in version.parent.iterdir():
        if old.resolve() not in (version.resolve(), before):
            shutil.rmtree(old, ignore_errors=True)
    return True
