"""Channels: `enginefarm promote`, `rollback`, `channel`, `rollout`, and `fleet`: what hosts run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import click

from enginefarm.cli import completion
from enginefarm.cli.options import (
    FiniteRange,
    gpu_option,
    precision_option,
    promotion_options,
    why_option,
)
from enginefarm.cli.tables import print_json, print_table
from enginefarm.errors import UsageError
from enginefarm.store import open_store

if TYPE_CHECKING:
    from enginefarm.store.channels import GateResult, Revision

STYLES = {"passed": "green", "waived": "yellow", "refused": "red"}


@click.command()
@click.argument("recipe", shell_complete=completion.engines)
@promotion_options
@click.option("--dry-run", is_flag=True, help="Run the gates without moving the channel.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def promote(recipe: str, channel: str, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Point a channel at all of RECIPE's engines, if every gate passes."""
    from enginefarm.release import promote as release
    from enginefarm.store.signing import trust

    def stop(_: object, results: tuple[GateResult, ...]) -> NoReturn:
        _print_gates(results, as_json=as_json)
        raise _DryRun

    try:
        revision = release.promote(
            open_store(),
            recipe,
            channel,
            trust=trust(),
            approve=stop if dry_run else None,
            **options,
        )
    except _DryRun:
        return
    print_move(revision, as_json=as_json)


class _DryRun(Exception):
    """The gates were run, and that is all that was asked for."""


@click.command()
@click.argument("recipe", shell_complete=completion.engines)
@click.argument("channel", shell_complete=completion.channels)
@click.option(
    "--to", "revision", type=int, help="The revision; the last one with other engines by default."
)
@why_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rollback(recipe: str, channel: str, revision: int | None, why: str, as_json: bool) -> None:
    """Point RECIPE's CHANNEL back at an earlier revision."""
    from enginefarm.release import promote as release
    from enginefarm.store.signing import trust

    moved = release.rollback(open_store(), recipe, channel, to=revision, why=why, trust=trust())
    print_move(moved, as_json=as_json)


@click.command()
@click.argument("recipe", shell_complete=completion.engines)
@click.argument("name", required=False, metavar="[CHANNEL]", shell_complete=completion.channels)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def channel(recipe: str, name: str | None, as_json: bool) -> None:
    """List RECIPE's channels, or every move of one CHANNEL: when, who, from what, and why."""
    from enginefarm.store import channels

    store = open_store()
    if name is not None:
        found = list(channels.history(store, recipe, name))
        if not found:
            channels.require_current(store, recipe, name)  # which says why
    else:
        found = list(channels.all_current(store, channels.named(recipe)))
        if not found and recipe not in store.recipes():
            raise store.no_engine(recipe, "channel")
    if as_json:
        print_json([one.model_dump(mode="json") for one in found])
        return
    print_table(
        f"{recipe}@{name}" if name else f"{'Channels' if found else 'No channels'} of {recipe}",
        ("channel", "revision", "at", "by", "action", "from", "engines", "why"),
        [_row(one) for one in found],
    )


def _row(one: Revision) -> tuple[str, ...]:
    engines = " ".join(
        f"{engine.gpu}/{engine.precision}:{engine.engine.digest[:8]}" for engine in one.engines
    )
    return (
        one.channel,
        str(one.revision),
        f"{one.at:%Y-%m-%d %H:%M}",
        one.by,
        one.action,
        one.source,
        engines,
        one.why,
    )


def print_move(revision: Revision, *, as_json: bool) -> None:
    """The revision that a channel is at now, and what the gates said."""
    if as_json:
        print_json(revision.model_dump(mode="json"))
        return
    if revision.action == "promote":
        _print_gates(revision.gates, as_json=False)
    click.echo(
        f"{revision.recipe}@{revision.channel} is revision {revision.revision}: "
        f"{len(revision.engines)} engines, from {revision.source}"
    )
    click.echo(f"\nTry next:\n  enginefarm pull {revision.recipe}@{revision.channel}")


def _print_gates(results: tuple[GateResult, ...], *, as_json: bool) -> None:
    if as_json:
        print_json([one.model_dump(mode="json") for one in results])
        return
    print_table(
        "Gates",
        ("engine", "gate", "says", "verdict"),
        [(one.label or "all", one.gate, one.detail, one.verdict) for one in results],
        [STYLES[one.verdict] for one in results],
    )


@click.command()
@click.argument("recipe", shell_complete=completion.engines)
@click.argument("repository", metavar="DIR|s3://BUCKET/PREFIX")
@click.option(
    "--server",
    "url",
    metavar="URL",
    default="http://localhost:8000",
    show_default=True,
    help="The address of Triton's HTTP port.",
)
@promotion_options
@precision_option("Default: fp16, if it has an engine.")
@gpu_option("The server's GPU, where GPUs of one compute capability have a repository each.")
@click.option("--as", "model", metavar="NAME", help="The model's name in Triton.")
@click.option(
    "--requests",
    type=click.IntRange(100, 1_000_000),
    default=300,
    show_default=True,
    help="How many requests are sent to each version to get its p99.",
)
@click.option(
    "--max-p99-ratio",
    "latency_ratio",
    type=FiniteRange(0.01, 100),
    help="The new p99 may be at most this many times that of the version that serves. Default: the "
    "recipe's `regression.latency_ratio`.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rollout(repository: str, url: str, as_json: bool, **asked: Any) -> None:
    """Try RECIPE's engines in a running Triton; if they pass, serve them and move the channel.

    The server must run with --model-control-mode=explicit, serve a version of the model, and read
    the repository at DIR or s3://BUCKET/PREFIX, which `triton-repo` wrote. The new version is
    loaded under another name and gets the stored reference inputs. Its outputs are checked against
    the recipe's accuracy budget, and its p99 against that of the served version. If it passes, it
    replaces that version and the channel moves; if not, it is unloaded and nothing changes. The
    channel's log has the outcome.
    """
    from enginefarm.cli.progress_view import watched
    from enginefarm.pulling.triton_places import place
    from enginefarm.release.rollout import RolloutRequest
    from enginefarm.release.rollout import rollout as roll_out
    from enginefarm.release.triton_server import TritonServer
    from enginefarm.store.cache import BlobCache
    from enginefarm.store.signing import trust

    with watched(enabled=not as_json):
        revision = roll_out(
            open_store(),
            BlobCache(),
            TritonServer(url),
            place(repository),
            RolloutRequest(**asked),
            trust(),
        )
    print_move(revision, as_json=as_json)


@click.command()
@click.argument(
    "name", required=False, metavar="[NAME[@CHANNEL]]", shell_complete=completion.engines
)
@click.option(
    "--promote",
    "source",
    metavar="CHANNEL|newest",
    help="What each host of NAME@CHANNEL would switch to, if it were promoted from there.",
)
@click.option(
    "--forget", metavar="HOST", help="Remove from the list a host of NAME@CHANNEL that is gone."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def fleet(name: str | None, source: str | None, forget: str | None, as_json: bool) -> None:
    """Show which host runs which revision of a channel, and what a promotion would reach.

    Hosts report it themselves: `pull NAME@CHANNEL --watch` writes it at each switch and once a day.
    """
    from enginefarm.pulling import fleet as hosts
    from enginefarm.release.promote import candidates
    from enginefarm.store import channels
    from enginefarm.store.signing import trust

    recipe, channel = channels.split(name) if name is not None else (None, None)
    option = "--promote" if source is not None else "--forget" if forget is not None else ""
    if option and (recipe is None or channel is None):
        raise UsageError(f"fleet {option}: name the channel", fix=f"fleet NAME@CHANNEL {option} …")
    store = open_store()
    if forget is not None and recipe is not None and channel is not None:
        hosts.forget(store, recipe, channel, forget)
    found = hosts.statuses(store, recipe, channel)
    if recipe is not None and not found and recipe not in store.recipes():
        raise store.no_engine(recipe, "fleet")
    if source is not None and recipe is not None:
        origin = None if source == "newest" else source
        found = hosts.reached(found, candidates(store, recipe, origin, trust()))
    if as_json:
        print_json([one.model_dump(mode="json") for one in found])
        return
    lagging = sum(one.verdict == "lags" for one in found)
    print_table(
        f"{len(found)} host{'s' * (len(found) > 1)}, {lagging} lagging"
        if found
        else "No host has reported what it runs",
        ("channel", "host", "GPU", "runs", "revision", "last report", "would get", "standing"),
        [
            (
                f"{one.state.recipe}@{one.state.channel}",
                one.state.name,
                one.state.host.gpu or one.state.host.gpu_name or "–",
                f"{one.state.runs} {one.state.spec[:12]}",
                str(one.state.revision or "–"),
                f"{one.heard:%Y-%m-%d %H:%M}",
                ("stays" if one.gets is None else one.gets) if source else "–",
                f"{one.verdict}: {one.words}",
            )
            for one in found
        ],
        [{"current": "green", "lags": "yellow"}.get(one.verdict, "") for one in found],
    )
