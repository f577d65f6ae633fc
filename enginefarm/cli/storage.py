"""The commands that look after the store and the cache: `store`, `cache`, `gc` and `fsck`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from enginefarm.cli.options import FiniteRange
from enginefarm.cli.tables import print_json, print_table
from enginefarm.errors import CorruptBlob, StoreError
from enginefarm.settings import cache_limit_bytes, current
from enginefarm.store import EMBEDDED, open_store

if TYPE_CHECKING:
    from enginefarm.release.findings import AuditFinding


@click.command()
@click.argument("action", type=click.Choice(["status", "start", "stop", "check"]), default="status")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def store(action: str, as_json: bool) -> None:
    """Show the store; start or stop the embedded one (its data stays); check a server.

    `check` tries every call that the farm needs on objects of its own, which it deletes, and
    names those that the server does not support. If there are any, the exit code is 40.
    """
    if action == "check":
        _check(as_json=as_json)
        return
    from enginefarm.store import embedded

    url = current().store
    own = not url or url.startswith(EMBEDDED)
    server = None
    if own:
        home = embedded.home_of(url)
        url = url or f"{EMBEDDED}{home}"
        if action == "start":
            embedded.start(home)
        if action == "stop":
            embedded.stop(home)
        server = embedded.running(home)
    said = {
        "url": url,
        "embedded": own,
        "running": server is not None,
        "endpoint": server.endpoint if server else os.environ.get("AWS_ENDPOINT_URL"),
        "pid": server.pid if server else None,
    }
    if as_json:
        print_json(said)
        return
    for name, value in said.items():
        click.echo(f"{name:9} {value}")


def _check(*, as_json: bool) -> None:
    from enginefarm.store.check import checks

    store = open_store()
    results = checks(store.objects)
    if as_json:
        print_json([one._asdict() for one in results])
    else:
        for one in results:
            click.echo(f"{'NO ' if one.failure else 'yes'}  {one.needed}")
            if one.failure:
                click.echo(f"     {one.failure}")
    missing = [one.needed for one in results if one.failure]
    if missing:
        raise StoreError(
            f"store check: {store.objects.where} does not do what the farm needs",
            why="; ".join(missing),
            fix="use another S3 server, or a newer version of this one",
        )


@click.group()
def cache() -> None:
    """Show or prune this machine's cache of blobs (ENGINEFARM_CACHE)."""


@cache.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(as_json: bool) -> None:
    """Show where the cache is, what it holds, and its limit."""
    from enginefarm.store.cache import BlobCache
    from enginefarm.store.prune import blobs_of

    root = BlobCache().root
    held = list(blobs_of(root))
    said = {
        "root": str(root),
        "blobs": len(held),
        "size_bytes": sum(one.size_bytes for one in held),
        "limit_bytes": cache_limit_bytes(root),
    }
    if as_json:
        print_json(said)
        return
    click.echo(
        f"{root}: {said['blobs']} blobs, {int(said['size_bytes']) / 1e6:,.1f} MB of at most "
        f"{int(said['limit_bytes']) / 1e6:,.1f} MB"
    )


@cache.command()
@click.option(
    "--keep-gb",
    type=FiniteRange(0, 1e9),
    help="Prune to this size. Default: the limit, ENGINEFARM_CACHE_LIMIT_GB or half of the disk.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def prune(keep_gb: float | None, as_json: bool) -> None:
    """Remove the least recently used blobs, and files that dead processes left behind.

    What was used in the last hour is always kept, and so is the newest engine of each model,
    GPU and precision that was pulled here by name.
    """
    from enginefarm.store.cache import BlobCache
    from enginefarm.store.prune import clean, keep_within

    root = BlobCache().root
    limit = cache_limit_bytes(root) if keep_gb is None else int(keep_gb * 1e9)
    pruned = keep_within(root, limit)
    left_behind = clean(root)
    if as_json:
        print_json({**pruned._asdict(), "left_behind": left_behind, "limit_bytes": limit})
        return
    click.echo(
        f"{root}: removed {pruned.files} blobs ({pruned.freed_bytes / 1e6:,.1f} MB) and "
        f"{left_behind} leftovers; {pruned.kept_bytes / 1e6:,.1f} MB stay"
    )
    if pruned.kept_bytes > limit:
        click.echo("The rest was used in the last hour, or is the newest engine of its name.")


GARBAGE_SHOWN = 40


@click.command()
@click.option("--delete", is_flag=True, help="Really delete; without this option it is a dry run.")
@click.option(
    "--keep-builds",
    type=click.IntRange(1, 1_000_000),
    default=3,
    show_default=True,
    help="How many builds of each recipe, GPU and precision to keep.",
)
@click.option(
    "--keep-revisions",
    type=click.IntRange(1, 1_000_000),
    default=3,
    show_default=True,
    help="Keep the engines that this many revisions of each channel name.",
)
@click.option(
    "--grace-hours",
    type=FiniteRange(0, 24 * 365 * 100),
    default=7 * 24,
    show_default=True,
    help="Keep what was written or used within this time.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def gc(
    delete: bool, keep_builds: int, keep_revisions: int, grace_hours: float, as_json: bool
) -> None:
    """Find engines and blobs that no channel, recent build or grace period keeps.

    It is safe to run it during builds.
    """
    from datetime import timedelta

    from enginefarm.cli.progress_view import watched
    from enginefarm.release.gc import Policy, collect

    policy = Policy(
        keep_builds=keep_builds,
        keep_revisions=keep_revisions,
        grace=timedelta(hours=grace_hours),
    )
    with watched(enabled=not as_json and delete):
        found = collect(open_store(), policy, delete=delete)
    if as_json:
        print_json({**found.model_dump(mode="json"), "freed_bytes": found.freed_bytes})
        return
    if found.garbage:
        print_table(
            "Deleted" if found.deleted else "Would be deleted",
            ("key", "size", "why"),
            [
                (one.key, f"{one.size_bytes / 1e6:,.1f} MB", one.why)
                for one in found.garbage[:GARBAGE_SHOWN]
            ],
        )
        if len(found.garbage) > GARBAGE_SHOWN:
            click.echo(f"… and {len(found.garbage) - GARBAGE_SHOWN} more")
    verb = "deleted" if found.deleted else "to delete"
    click.echo(
        f"{len(found.garbage)} objects {verb}, {found.freed_bytes / 1e6:,.1f} MB; "
        f"{found.kept_engines} engines and {found.kept_bytes / 1e6:,.1f} MB stay"
    )
    if found.garbage and not found.deleted:
        click.echo("Nothing was deleted. Add --delete to do so.")


FINDINGS_SHOWN = 200


@click.command()
@click.option(
    "--repair",
    is_flag=True,
    help="Repair what can be repaired; without this option nothing is changed.",
)
@click.option("--bytes", "read_bytes", is_flag=True, help="Also download and hash every blob.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def fsck(repair: bool, read_bytes: bool, as_json: bool) -> None:
    """Check every manifest, index entry, blob, record, channel and recipe of the store.

    The exit code is 44 while something is wrong that --repair has not fixed. A lost blob is
    uploaded again from this machine's cache, where that has it.
    """
    from enginefarm.cli.progress_view import watched
    from enginefarm.release.fsck import check
    from enginefarm.store.site import here

    with watched(enabled=not as_json):
        audit = check(here(), repair=repair, read_bytes=read_bytes)
    if as_json:
        print_json({**audit.model_dump(mode="json"), "open": len(audit.open)})
    else:
        rows = [
            (
                one.key,
                one.what,
                one.repair or one.fix or "nothing to do",
                _state(one),
            )
            for one in audit.findings[:FINDINGS_SHOWN]
        ]
        if rows:
            print_table("Findings", ("object", "what is wrong", "repair", "state"), rows)
        click.echo(
            f"{audit.objects} objects, {audit.engines} whole engines, "
            f"{audit.bytes_hashed / 1e6:,.1f} MB hashed: {len(audit.findings)} findings, "
            f"{len(audit.open)} open"
        )
    if audit.open:
        repairable = [one for one in audit.open if one.repair]
        raise CorruptBlob(
            f"fsck: {len(audit.open)} findings are open",
            why=f"{audit.open[0].key}: {audit.open[0].what}",
            fix="enginefarm fsck --repair" if repairable else audit.open[0].fix,
        )


def _state(one: AuditFinding) -> str:
    if one.repaired:
        return "repaired"
    return "harmless" if one.harmless else "open"
