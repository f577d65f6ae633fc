"""`enginefarm cache`: what this machine keeps, and its limit."""

from __future__ import annotations

import click

from enginefarm.cli.options import FiniteRange
from enginefarm.cli.tables import print_json
from enginefarm.settings import cache_limit_bytes


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
    type=FiniteRange(0),
    help="Prune to this size. Default: the limit, ENGINEFARM_CACHE_LIMIT_GB or half of the disk.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def prune(keep_gb: float | None, as_json: bool) -> None:
    """Remove what was used longest ago, and what dead processes left behind.

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
