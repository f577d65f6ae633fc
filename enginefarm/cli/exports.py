"""Engines in the forms that others take: `package`, `triton-repo`, `bom`, `reproduce` and `url`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from enginefarm.cli import completion
from enginefarm.cli.options import NamedPath, gpu_option, precision_option
from enginefarm.cli.tables import print_json, print_table
from enginefarm.store import open_store


@click.command()
@click.argument("name", metavar="NAME[@CHANNEL]", shell_complete=completion.engines)
@click.argument("folder", type=NamedPath(path_type=Path), required=False)
@gpu_option("Take only engines for this GPU.")
@precision_option("Take this precision. Default: fp16, if it has an engine.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def package(name: str, folder: Path | None, gpu: str | None, precision: Any, as_json: bool) -> None:
    """Write a model package: an engine for each execution provider, and a graph for the CPU.

    FOLDER is NAME.ortpackage by default. ONNX Runtime 1.32 opens it with its ModelPackageContext,
    without enginefarm. The package is opened and its CPU variant is run on the
    reference inputs before the folder appears. Signatures are checked where a trust key is
    configured.
    """
    from enginefarm.cli.progress_view import watched
    from enginefarm.pulling.catalog import StoreCatalog, require_trusted
    from enginefarm.release.package import write
    from enginefarm.release.package_choice import choose, cpu_engines
    from enginefarm.store import site
    from enginefarm.store.channels import split
    from enginefarm.store.seen_revisions import SeenRevisions
    from enginefarm.store.signing import trust

    here, trusted = site.here(), trust()
    recipe, channel = split(name)
    catalog = StoreCatalog(here.store, SeenRevisions(here.cache.root))
    engines = catalog.manifests(recipe, channel, trusted)
    budgets = catalog.budgets(recipe)
    choice = choose(engines, name, precision=precision, gpu=gpu, budgets=budgets)
    others = cpu_engines(choice, engines)
    if trusted is not None:
        for one in (*(variant.manifest for variant in choice.variants), *others):
            require_trusted(catalog, recipe, one, trusted)
    version = choice.variants[0].manifest.spec_digest[:12]
    with watched(enabled=not as_json):
        made = write(
            here,
            choice,
            others,
            folder or Path(f"{recipe}.ortpackage"),
            name=recipe,
            version=f"{channel}-{version}" if channel else version,
            budgets=budgets,
        )
    rows = [
        (one.name, one.provider, one.manifest.precision, ", ".join(one.gpus), "not run here")
        for one in choice.variants
    ]
    ran = f"within budget, {made.checked.runtime}"
    rows.append(("cpu", "CPUExecutionProvider", made.cpu, "", ran))
    if as_json:
        print_json(
            {
                "folder": str(made.folder),
                "variants": [
                    dict(
                        zip(("name", "provider", "precision", "gpus", "checked"), row, strict=True)
                    )
                    for row in rows
                ],
                "cpu": made.checked.model_dump(mode="json"),
                "left_out": list(choice.notes),
            }
        )
        return
    title = f"{made.folder}: a model package of {name}"
    print_table(title, ("variant", "execution provider", "precision", "GPUs", "checked"), rows)
    for note in choice.notes:
        click.echo(f"note: {note}", err=True)


@click.command("triton-repo")
@click.argument("name", metavar="NAME[@CHANNEL]", shell_complete=completion.engines)
@click.argument("destination", metavar="DIR|s3://BUCKET/PREFIX")
@precision_option("Default: fp16, if it has an engine.")
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
    from enginefarm.pulling.triton_places import place, write_files
    from enginefarm.store.cache import BlobCache
    from enginefarm.store.channels import split
    from enginefarm.store.seen_revisions import SeenRevisions
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
        images = {build: [f"tritonserver:{tag}" for tag in triton.tags(build)] for build in builds}
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
        click.echo(f"note: {triton.image_words(build)}", err=True)


@click.command()
@click.argument("engine", metavar="NAME|SPEC", shell_complete=completion.engines)
@gpu_option("With NAME: this GPU's.")
@precision_option("With NAME: this precision's.")
@click.option(
    "--license",
    "license_",
    default="",
    metavar="SPDX",
    help="The model's license, as an SPDX expression such as Apache-2.0.",
)
@click.option(
    "--output",
    "-o",
    type=NamedPath(path_type=Path, dir_okay=False),
    help="Write it here. Default: standard output.",
)
def bom(
    engine: str, gpu: str | None, precision: str | None, license_: str, output: Path | None
) -> None:
    """Print a CycloneDX bill of materials of an engine: graph, data, toolchain, packages.

    SPEC is a spec digest (8 digits are enough). NAME is a recipe, whose newest engine is taken, or
    NAME/GPU/PRECISION. The document lists what the engine's manifest lists: digests, versions, and
    the licenses that the packages declare. It calls itself incomplete, because a manifest does not
    list what those packages need.
    """
    from enginefarm.cli.listing import find
    from enginefarm.release.bom import bom as document
    from enginefarm.store.disk import write_atomically

    store = open_store()
    manifest = find(store, engine, gpu, precision, command="bom")
    signed = store.attestation(manifest) is not None
    text = json.dumps(
        document(manifest, signed=signed, license_=license_), indent=2, ensure_ascii=False
    )
    if output is None:
        click.echo(text)
        return
    write_atomically(output, text.encode() + b"\n")
    click.echo(f"{output}: CycloneDX of {manifest.recipe} {manifest.spec.label}")


@click.command()
@click.argument("engine", metavar="SPEC|NAME/GPU/PRECISION", shell_complete=completion.engines)
@click.argument("folder", type=NamedPath(path_type=Path, file_okay=False))
def reproduce(engine: str, folder: Path) -> None:
    """Write a FOLDER that rebuilds an engine with only TensorRT's bindings and numpy.

    It holds the graph as the builder got it, the scales of its quantized tensors, reference
    inputs and outputs, a script through the Builder API, and a trtexec line.
    """
    from enginefarm.building.reproduce import reproduce as write
    from enginefarm.cli.listing import find
    from enginefarm.store import site

    here = site.here()
    made = write(here, find(here.store, engine, None, None, command="reproduce"), folder)
    click.echo(f"{made}: run `python {made / 'reproduce.py'}`; README.md says what is compared")


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

    Anybody who has it can download that one engine until it expires. Pass the whole line to
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
