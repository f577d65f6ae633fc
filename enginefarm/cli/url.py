"""`enginefarm url`: a pull for hosts that have no credentials."""

from __future__ import annotations

from typing import Any

import click

from enginefarm.cli import completion
from enginefarm.cli.options import gpu_option, precision_option
from enginefarm.cli.tables import print_json


@click.command()
@click.argument("name", metavar="NAME[@CHANNEL]", shell_complete=completion.engines)
@gpu_option("The GPU; auto is this machine's.", default="auto", show_default=True)
@precision_option("Default: the best that fits.")
@click.option(
    "--expires-s",
    type=click.IntRange(1, 7 * 24 * 3600),
    default=3600,
    show_default=True,
    help="How many seconds the URL works.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def url(name: str, gpu: str, precision: Any, expires_s: int, as_json: bool) -> None:
    """Print a URL that needs no credentials, with the sha256 of its bytes.

    Anybody who has it can download that one engine until it expires. Give it, whole, to
    `enginefarm pull --url`, which checks the bytes.
    """
    from enginefarm.pulling.presigned import presign

    made, chosen = presign(name, gpu=gpu, precision=precision, expires_s=expires_s)
    if not as_json:
        click.echo(str(made))
        return
    print_json(
        {
            "url": str(made),
            "sha256": made.ref.digest,
            "size_bytes": made.ref.size_bytes,
            "expires_s": expires_s,
            "spec_digest": chosen.manifest.spec_digest,
            "caveats": list(chosen.caveats),
        }
    )
