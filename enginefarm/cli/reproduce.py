"""`enginefarm reproduce`: an engine's build in a folder, for a bug report to NVIDIA."""

from __future__ import annotations

from pathlib import Path

import click

from enginefarm.cli import completion
from enginefarm.cli.options import NamedPath


@click.command()
@click.argument("engine", metavar="SPEC|NAME/GPU/PRECISION", shell_complete=completion.engines)
@click.argument("folder", type=NamedPath(path_type=Path, file_okay=False))
def reproduce(engine: str, folder: Path) -> None:
    """Write a FOLDER that rebuilds ENGINE with only TensorRT's bindings and numpy.

    It holds the graph as the builder got it, the scales of its quantized tensors, reference
    inputs and outputs, a script through the Builder API, and a trtexec line.
    """
    from enginefarm.building.reproduce import reproduce as write
    from enginefarm.cli.listing import find
    from enginefarm.store import site

    here = site.here()
    made = write(here, find(here.store, engine, None, None, command="reproduce"), folder)
    click.echo(f"{made}: run `python {made / 'reproduce.py'}`; README.md says what is compared")
