"""`enginefarm rollout`: a new version in a running Triton, if it passes there."""

from __future__ import annotations

from typing import Any

import click

from enginefarm.cli import completion
from enginefarm.cli.options import FiniteRange, gpu_option, precision_option, promotion_options
from enginefarm.store import open_store


@click.command()
@click.argument("recipe", shell_complete=completion.engines)
@click.argument("repository", metavar="DIR|s3://BUCKET/PREFIX")
@click.option(
    "--server",
    "url",
    metavar="URL",
    default="http://localhost:8000",
    show_default=True,
    help="Triton's HTTP port.",
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
    help="The p99 may be at most this times that of the serving version; the recipe's "
    "`regression.latency_ratio` by default.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rollout(repository: str, url: str, as_json: bool, **asked: Any) -> None:
    """Try RECIPE's engines in a running Triton, and move it and the channel if they pass.

    The server runs with --model-control-mode=explicit, serves a version of the model, and reads
    the repository at DIR or s3://BUCKET/PREFIX, which `triton-repo` wrote. The new version is
    loaded under a name of its own; the stored reference inputs go through the server; outputs are
    compared by the recipe's budget, and p99 with the version that serves. Then the new version
    takes its place and the channel moves, or it is unloaded and everything stays. The channel's
    log has the outcome.
    """
    from enginefarm.cli.channels import print_move
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
