"""`enginefarm triton-repo`: a model repository for NVIDIA Triton Inference Server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from enginefarm.cli import completion
from enginefarm.cli.tables import print_json
from enginefarm.names import PRECISION_NAMES
from enginefarm.store import open_store


@click.command("triton-repo")
@click.argument("name", metavar="NAME[@CHANNEL]", shell_complete=completion.engines)
@click.argument("destination", metavar="DIR|s3://BUCKET/PREFIX")
@click.option(
    "--precision", type=click.Choice(PRECISION_NAMES), help="Default: fp16, if it has an engine."
)
@click.option("--as", "model_name", metavar="NAME", help="The model's name in Triton.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def triton_repo(
    name: str, destination: str, precision: Any, model_name: str | None, as_json: bool
) -> None:
    """Write config.pbtxt and the plans of all GPUs, so that Triton loads the right one.

    Each signature is checked first where a trust key is configured. GPUs of one compute
    capability get a repository each, in DIR/<gpu>.
    """
    from enginefarm.cli.progress_view import watched
    from enginefarm.pulling import triton
    from enginefarm.pulling.catalog import StoreCatalog, require_trusted
    from enginefarm.pulling.triton_images import image_words, tags
    from enginefarm.pulling.triton_places import place, write_files
    from enginefarm.store.cache import BlobCache
    from enginefarm.store.channels import split
    from enginefarm.store.seen import SeenRevisions
    from enginefarm.store.signing import trust

    store, cache, trusted = open_store(), BlobCache(), trust()
    recipe, channel = split(name)
    catalog = StoreCatalog(store, SeenRevisions(cache.root))
    chosen = triton.choose(catalog.manifests(recipe, channel, trusted), recipe, precision)
    files = triton.repository(chosen, name=model_name or recipe)
    with watched(enabled=not as_json):
        for manifest in chosen:
            if trusted is not None:
                require_trusted(catalog, recipe, manifest, trusted)
        blobs = {one.engine.digest: cache.ensure(store, one.engine) for one in chosen}
        write_files(place(destination), files, blobs)
        if not destination.startswith("s3://"):
            triton.remove_old_plans(files, Path(destination))
    paths = [file.path for file in files]
    builds = sorted({one.spec.toolchain.build for one in chosen})
    if as_json:
        images = {build: [f"tritonserver:{tag}" for tag in tags(build)] for build in builds}
        print_json({"destination": destination, "files": paths, "images": images})
        return
    for path in paths:
        click.echo(path)
    roots = sorted({path.split("/")[0] for path in paths if path.count("/") == 3})
    where = [f"{destination.rstrip('/')}/{root}" for root in roots] or [destination]
    click.echo("\nTry next:")
    for root in where:
        click.echo(f"  tritonserver --model-repository={root}")
    for build in builds:
        click.echo(f"note: {image_words(build)}", err=True)
