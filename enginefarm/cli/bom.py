"""`enginefarm bom`: a bill of materials of an engine."""

from __future__ import annotations

import json
from pathlib import Path

import click

from enginefarm.cli import completion
from enginefarm.cli.options import NamedPath, gpu_option, precision_option
from enginefarm.store import open_store


@click.command()
@click.argument("engine", metavar="NAME|SPEC", shell_complete=completion.engines)
@gpu_option("With NAME: this GPU's.")
@precision_option("With NAME: this precision's.")
@click.option(
    "--output",
    "-o",
    type=NamedPath(path_type=Path, dir_okay=False),
    help="Write it here. Default: standard output.",
)
def bom(engine: str, gpu: str | None, precision: str | None, output: Path | None) -> None:
    """Print a CycloneDX bill of materials of an engine: graph, data, toolchain, packages.

    ENGINE is a spec digest (8 digits are enough), NAME/GPU/PRECISION, or a recipe's newest. It says
    what the engine's manifest says, by digest and version. Licenses are not in a manifest, and the
    document calls itself incomplete.
    """
    from enginefarm.cli.listing import find
    from enginefarm.release.bom import bom as document
    from enginefarm.store.appearing import write_atomically
    from enginefarm.store.signing import attestation_key

    store = open_store()
    manifest = find(store, engine, gpu, precision, command="bom")
    signed = store.objects.get(attestation_key(manifest)) is not None
    text = json.dumps(document(manifest, signed=signed), indent=2, ensure_ascii=False)
    if output is None:
        click.echo(text)
        return
    write_atomically(output, text.encode() + b"\n")
    click.echo(f"{output}: CycloneDX of {manifest.recipe} {manifest.spec.label}")
