"""`enginefarm pull`: the engine that fits, on this disk, its digest checked."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from enginefarm.cli import completion
from enginefarm.cli.options import FiniteRange, NamedPath, gpu_option, precision_option

if TYPE_CHECKING:
    from enginefarm.documents.host import Host
    from enginefarm.documents.manifest import Manifest
    from enginefarm.pulling.fleet import Reporter
    from enginefarm.pulling.pull import PulledEngine
    from enginefarm.pulling.repeat_pull import Question
    from enginefarm.pulling.select import Candidate, Selection


@click.command()
@click.argument("name", required=False, metavar="NAME[@CHANNEL]", shell_complete=completion.engines)
@gpu_option("Pull for this GPU; auto is this machine's.", default="auto", show_default=True)
@precision_option("Default: the best that fits.")
@click.option(
    "--for",
    "goal",
    type=click.Choice(("latency", "throughput")),
    help="Rank the engines that fit by measurements on this GPU.",
)
@click.option(
    "--batch", type=click.IntRange(1), help="With --for: compare at this batch size only."
)
@click.option(
    "--dest",
    type=NamedPath(path_type=Path),
    help="A file, or a folder that exists. Default: the engine stays in the cache.",
)
@click.option("--url", metavar="URL", help="Instead of NAME: what `enginefarm url` printed.")
@click.option(
    "--watch",
    "every_s",
    type=FiniteRange(1),
    metavar="SECONDS",
    help="Keep running: check this often, and keep the folder --dest up to date.",
)
@click.option(
    "--explain", is_flag=True, help="Show every engine, its rank, and why it was not chosen."
)
@click.option("--offline", is_flag=True, help="Use only what this host pulled before.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the result as JSON on standard output."
)
def pull(
    name: str | None,
    gpu: str,
    precision: Any,
    goal: Any,
    batch: int | None,
    dest: Path | None,
    url: str | None,
    every_s: float | None,
    explain: bool,
    offline: bool,
    as_json: bool,
) -> None:
    """Download the engine of NAME, or of NAME@CHANNEL, that fits this host.

    The bytes are checked against the manifest's sha256, and the file is written atomically. When
    nothing fits, each engine's reason is listed and the exit code is 50.
    """
    from enginefarm.errors import UsageError

    if url is not None and name is None:
        from enginefarm.pulling.presigned import pull_url

        with watched_if_any(enabled=not as_json):
            path = pull_url(url, dest=dest)
        click.echo(json.dumps({"path": str(path)}) if as_json else path)
        return
    if name is None or url is not None:
        raise UsageError("pull: give NAME, or --url URL", fix="enginefarm pull --help")
    if batch is not None and goal is None:
        raise UsageError("pull --batch: this option needs a goal", fix="add --for latency")
    whole = bool(goal or explain or offline or as_json or every_s is not None)
    question = None if whole else _question(name, gpu, precision)
    answer = question and question.answer(dest)
    if answer is not None:
        _say(answer.path, answer.words, "already in the cache")
        return
    from enginefarm.pulling.pull import file_name
    from enginefarm.pulling.pull import pull as pull_engine
    from enginefarm.pulling.select import Wish

    wish = Wish(goal=goal, batch=batch) if goal else None
    asked = partial(pull_engine, name, gpu=gpu, precision=precision, offline=offline, wish=wish)
    if every_s is not None:
        if dest is None:
            raise UsageError(
                "pull --watch: name the folder to keep up to date", fix="add --dest FOLDER"
            )
        _watch(asked, dest, every_s, _reporter(name, gpu, precision, offline=offline))
        return
    rankings: list[str] = []

    def told(selection: Selection, host: Host) -> None:
        rankings.append(selection.ranked_by)
        if explain:
            print_selection(selection, host)
        if question is not None:
            question.selected(selection)

    store = question and question.store
    with watched_if_any(enabled=not as_json):
        pulled = asked(dest=dest, on_selection=told, store=store)
    if as_json:
        from enginefarm.cli.tables import print_json

        print_json(summary(pulled) | ({"ranked_by": rankings[0]} if goal else {}))
        return
    manifest = pulled.manifest
    origin = pulled.delivery or ("already in the cache" if pulled.cached else "downloaded")
    engine = (
        f"{manifest.recipe} {manifest.spec.label}, {manifest.spec.toolchain.name} "
        f"{manifest.spec.toolchain.build}, {manifest.engine.size_bytes / 1e6:,.1f} MB, sha256 "
        f"{manifest.engine.digest[:12]}, fit: {pulled.candidate.fit.words}"
    )
    ranked = f"ranked {rankings[0]}" if pulled.candidate.speed else rankings[0]
    notes = (f"note: {one}" for one in (*pulled.candidate.caveats, not_listed(manifest)) if one)
    words = [engine, *filter(None, [ranked]), *notes]
    _say(pulled.path, words, origin)
    if question is not None:
        question.remember(pulled, file_name(manifest), words)


def _say(path: Path, words: Sequence[str], origin: str) -> None:
    """words: the line that describes the engine, and what follows it."""
    click.echo(path)
    for line in (f"{words[0]}; {origin}", *words[1:]):
        click.echo(line, err=True)


def _question(name: str, gpu: str, precision: str | None) -> Question | None:
    from enginefarm.pulling.repeat_pull import question

    return question(name, gpu, precision)


def not_listed(manifest: Manifest) -> str:
    """What NVIDIA's support matrix has against this engine; empty where it lists it."""
    from enginefarm.documents import gpus, support

    row = gpus.table().get(manifest.gpu)
    toolchain = manifest.spec.toolchain.name
    return support.caution(row, toolchain, manifest.precision) if row else ""


def print_selection(selection: Selection, host: Host) -> None:
    """Every engine on standard error: the rank of those that fit, the reasons of the others."""
    from enginefarm.cli.tables import print_table

    rows = [
        (str(rank), one.manifest, (f"fits: {one.fit.words}{_speed(one)}", *one.caveats))
        for rank, one in enumerate(selection.candidates, 1)
    ]
    rows += [("–", one.manifest, one.reasons) for one in selection.rejections]
    print_table(
        f"For {host}",
        ("rank", "engine", "toolchain", "spec", "says"),
        [
            (
                rank,
                manifest.spec.label,
                f"{manifest.spec.toolchain.name} {manifest.spec.toolchain.build}",
                manifest.spec_digest[:12],
                "\n".join(said),
            )
            for rank, manifest, said in rows
        ],
        err=True,
    )


def _speed(candidate: Candidate) -> str:
    found = candidate.speed
    if found is None:
        return ""
    rate = f", {found.samples_per_s:,.0f} samples/s" if found.samples_per_s else ""
    return f", {found.latency_ms_median:.3g} ms median at batch {found.batch}{rate}"


@contextmanager
def watched_if_any(*, enabled: bool) -> Generator[None]:
    """`watched`, which is loaded at the first byte: a pull from the cache shows nothing."""
    from enginefarm.progress import SINK

    if not enabled:
        yield
        return
    stack = ExitStack()

    def first(step: str, done: float, total: float | None, note: str = "") -> None:
        from enginefarm.cli.progress_view import watched

        if SINK.get() is first:
            stack.enter_context(watched())
        SINK.get()(step, done, total, note)

    token = SINK.set(first)
    try:
        with stack:
            yield
    finally:
        SINK.reset(token)


def _reporter(name: str, gpu: str, precision: Any, *, offline: bool) -> Reporter | None:
    """None: a host that follows no channel of a store does not report."""
    from enginefarm.pulling.fleet import Reporter
    from enginefarm.store.channels import split

    recipe, channel = split(name)
    return None if channel is None or offline else Reporter(recipe, channel, gpu, precision)


def _watch(
    pull: Callable[[], PulledEngine], folder: Path, every_s: float, report: Reporter | None
) -> None:
    """Runs until interrupted. Prints each swap to standard output, and errors to standard error."""
    import threading

    from enginefarm.errors import EnginefarmError
    from enginefarm.pulling.watch import watch

    def told() -> PulledEngine:
        pulled = pull()
        if pulled.delivery:
            click.echo(f"note: {pulled.delivery}", err=True)
        return pulled

    noted = ""

    def looked(manifest: Manifest, swapped: bool) -> None:
        nonlocal noted
        if swapped:
            label, digest = manifest.spec.label, manifest.engine.digest[:12]
            click.echo(f"{folder / 'current'} -> {label} {digest}")
        if report is None:
            return
        try:
            report(manifest)
        except EnginefarmError as error:  # the host serves the engine anyway
            note = f"note: `enginefarm fleet` does not show this host: {error.what}"
            if note != noted:
                click.echo(note, err=True)
            noted = note

    watch(
        told,
        folder,
        every_s=every_s,
        stop=threading.Event(),
        on_look=looked,
        on_error=lambda error: click.echo(f"error: {error}", err=True),
    )


def summary(pulled: PulledEngine) -> dict[str, Any]:
    return {
        "path": str(pulled.path),
        "cached": pulled.cached,
        "delivery": pulled.delivery,
        "fit": pulled.candidate.fit.name.lower(),
        "caveats": list(pulled.candidate.caveats),
        "speed": pulled.candidate.speed and pulled.candidate.speed.model_dump(mode="json"),
        "manifest": pulled.manifest.model_dump(mode="json"),
    }
