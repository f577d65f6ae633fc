"""What a run shows in Prefect's UI in addition to its state: progress while it builds, its log."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import copy_context
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.context import TaskRunContext

from enginefarm.documents.manifest import Manifest
from enginefarm.documents.spec import BuildSpec
from enginefarm.errors import StoreError
from enginefarm.planning import stages
from enginefarm.progress import SINK
from enginefarm.store import failed_builds

AFTER_S = 2.0
EVERY_S = 2.0
LOG_LINES = 200
LOG_BYTES = 4 << 20


@contextmanager
def progress_artifact(label: str) -> Generator[None]:
    """Shows the block's progress in the UI; a short block shows none.

    Other watchers continue.
    """
    if TaskRunContext.get() is None:
        yield
        return
    watcher = SINK.get()
    artifact: UUID | None = None
    run = copy_context()  # uploads report from threads that know no run
    shown_at = time.monotonic() + AFTER_S - EVERY_S

    def show(step: str, done: float, total: float | None, note: str = "") -> None:
        nonlocal artifact, shown_at
        watcher(step, done, total, note)
        if total is None or time.monotonic() - shown_at < EVERY_S:
            return
        shown_at = time.monotonic()
        percent = 100.0 * min(1.0, done / total) if total else 0.0
        if artifact is None:
            made = run.copy().run(create_progress_artifact, percent, description=f"{label}: {note}")
            artifact = made if isinstance(made, UUID) else None
        else:
            run.copy().run(
                update_progress_artifact, artifact, percent, description=f"{label}: {note}"
            )

    token = SINK.set(show)
    try:
        yield
    finally:
        SINK.reset(token)
        if artifact is not None:
            update_progress_artifact(artifact, 100.0, description=label)


def publish_log(manifest: Manifest) -> None:
    """The end of the native builder's log, and how to get the whole of it."""
    log = manifest.build.log
    if log is None:
        return
    site = stages.here()
    try:
        # Built here, it is in this machine's cache: nothing is downloaded.
        text = site.cache.ensure(site.store, log).read_bytes()[-LOG_BYTES:]
        lines = text.decode("utf-8", "replace").splitlines()
    except StoreError as error:
        lines = [str(error)]
    _show_log(
        f"{manifest.recipe} {manifest.spec.label}",
        manifest.spec_digest,
        lines,
        f"The whole log is the blob `{log.digest}`; `enginefarm show {manifest.spec_digest[:12]}` "
        "names it.",
    )


def publish_failure_log(recipe: str, spec: BuildSpec) -> None:
    """Shows the end of a failed build's log; if the store cannot be reached, that is shown."""
    gpu, precision = spec.gpu.label, spec.precision.name
    store = stages.here().store
    try:
        found = failed_builds.listed(store, recipe, gpu, precision)
        ours = next((one for one in found if spec.digest.startswith(one.spec)), None)
        text = failed_builds.read(store, ours) if ours is not None else None
    except StoreError as error:
        text = str(error)
    if text is None:
        return
    command = f"enginefarm log {recipe} --gpu {gpu} --precision {precision} --failed"
    whole = f"`{command}` prints the whole log."
    _show_log(f"{recipe} {spec.label}", spec.digest, text.splitlines(), whole)


def _show_log(name: str, spec_digest: str, lines: list[str], whole: str) -> None:
    create_markdown_artifact(
        key=f"log-{spec_digest[:16]}",
        description=f"Log of the builder: {name}",
        markdown="\n".join(
            [
                f"# {name}",
                "",
                f"The last {min(len(lines), LOG_LINES)} of {len(lines)} lines. {whole}",
                "",
                "```",
                *(line.replace("```", "'''") for line in lines[-LOG_LINES:]),
                "```",
            ]
        ),
    )
