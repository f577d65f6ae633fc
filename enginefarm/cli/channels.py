"""`enginefarm promote`, `rollback` and `channel`: what each host gets, and who decided it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import click

from enginefarm.cli import completion
from enginefarm.cli.options import promotion_options, why_option
from enginefarm.cli.tables import print_json, print_table
from enginefarm.store import open_store
from enginefarm.store.missing import no_engine

if TYPE_CHECKING:
    from enginefarm.store.channels import GateResult, Revision

STYLES = {"passed": "green", "waived": "yellow", "refused": "red"}


@click.command()
@click.argument("recipe", shell_complete=completion.engines)
@promotion_options
@click.option("--dry-run", is_flag=True, help="Run the gates without moving the channel.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def promote(recipe: str, channel: str, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Point a channel at all of RECIPE's engines at once, if every gate passes."""
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
            raise no_engine("channel", store, recipe)
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
