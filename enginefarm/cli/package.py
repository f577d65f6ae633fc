"""`enginefarm package`: engines as a model package of ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from enginefarm.cli import completion
from enginefarm.cli.options import NamedPath, gpu_option, precision_option
from enginefarm.cli.tables import print_json, print_table


@click.command()
@click.argument("name", metavar="NAME[@CHANNEL]", shell_complete=completion.engines)
@click.argument("folder", type=NamedPath(path_type=Path), required=False)
@gpu_option("Take only engines for this GPU.")
@precision_option("Take this precision. Default: fp16, if it has an engine.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def package(name: str, folder: Path | None, gpu: str | None, precision: Any, as_json: bool) -> None:
    """Write a model package: an engine for each execution provider, and a graph for the CPU.

    FOLDER is NAME.ortpackage by default. ONNX Runtime 1.32 opens it with its ModelPackageContext,
    and needs nothing of enginefarm. The package is opened and its CPU variant is run on the
    reference inputs before the folder appears. Signatures are checked where a trust key is
    configured.
    """
    from enginefarm.cli.progress_view import watched
    from enginefarm.pulling.catalog import StoreCatalog, require_trusted
    from enginefarm.release.package import write
    from enginefarm.release.package_choice import choose, cpu_engines
    from enginefarm.store import site
    from enginefarm.store.channels import split
    from enginefarm.store.seen import SeenRevisions
    from enginefarm.store.signing import trust

    here, trusted = site.here(), trust()
    recipe, channel = split(name)
    catalog = StoreCatalog(here.store, SeenRevisions(here.cache.root))
    engines = catalog.manifests(recipe, channel, trusted)
    budgets = catalog.budgets(recipe)
    choice = choose(engines, recipe, precision=precision, gpu=gpu, budgets=budgets)
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
