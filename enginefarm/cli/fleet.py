"""`enginefarm fleet`: which host runs which engine of which channel, and who lags."""

from __future__ import annotations

import click

from enginefarm.cli import completion
from enginefarm.cli.tables import print_json, print_table
from enginefarm.errors import UsageError
from enginefarm.store import open_store
from enginefarm.store.missing import no_engine


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
        raise no_engine("fleet", store, recipe)
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
