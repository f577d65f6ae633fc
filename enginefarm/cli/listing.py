"""`enginefarm list`, `show` and `log`: what is in the store."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from enginefarm.cli import completion
from enginefarm.cli.options import gpu_option, precision_option
from enginefarm.cli.screen import plain
from enginefarm.cli.tables import print_json, print_table
from enginefarm.errors import StoreMissing, UsageError
from enginefarm.store import open_store

if TYPE_CHECKING:
    from enginefarm.documents.manifest import Manifest
    from enginefarm.store.engine_store import EngineStore

HEADER = ("recipe", "GPU", "precision", "toolchain", "engine", "size", "built", "spec", "on device")
SPEC = re.compile(r"[0-9a-f]{8,64}")


@click.command()
@click.argument("name", required=False, shell_complete=completion.engines)
@gpu_option("Show only this GPU's.")
@precision_option("Show only this precision's.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(name: str | None, gpu: str | None, precision: str | None, as_json: bool) -> None:
    """List the engines in the store: all of them, or those of recipe NAME."""
    from enginefarm.pulling.catalog import listed
    from enginefarm.store.channels import named

    store = open_store()
    found = listed(store, None if name is None else named(name), gpu, precision)
    if name is not None and not found and name not in store.recipes():
        raise store.no_engine(name, "list")
    if as_json:
        print_json([summary(manifest) for manifest in found])
        return
    title = f"Engines in {store.url}" if found else f"No engines in {store.url}"
    print_table(title, HEADER, [row(manifest) for manifest in found])


def summary(manifest: Manifest) -> dict[str, object]:
    return {
        "recipe": manifest.recipe,
        "gpu": manifest.gpu,
        "precision": manifest.precision,
        "toolchain": manifest.spec.toolchain.model_dump(mode="json"),
        "engine": manifest.engine.model_dump(mode="json"),
        "spec_digest": manifest.spec_digest,
        "device_verification": manifest.device_verification.status,
        "created_at": manifest.created_at.isoformat(),
    }


def row(manifest: Manifest) -> tuple[str, ...]:
    toolchain = manifest.spec.toolchain
    return (
        manifest.recipe,
        manifest.gpu,
        manifest.precision,
        f"{toolchain.name} {toolchain.build}",
        manifest.engine.digest[:12],
        f"{manifest.engine.size_bytes / 1e6:,.1f} MB",
        f"{manifest.created_at:%Y-%m-%d %H:%M}",
        manifest.spec_digest[:12],
        manifest.device_verification.status,
    )


@click.command()
@click.argument("what", metavar="NAME|SPEC", shell_complete=completion.engines)
@gpu_option("With NAME: only this GPU's.")
@precision_option("With NAME: only this precision's.")
@click.option("--layers", is_flag=True, help="Show the engine's layers.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest, or the layers, as JSON.")
def show(what: str, gpu: str | None, precision: str | None, layers: bool, as_json: bool) -> None:
    """Show where an engine comes from, and its figures.

    SPEC is a spec digest (8 digits are enough). NAME is a recipe, whose newest engine is shown.
    """
    store = open_store()
    manifest = find(store, what, gpu, precision)
    title = f"{manifest.recipe} {manifest.spec.label} {manifest.spec_digest[:12]}"
    if not layers:
        _show_manifest(manifest, title, as_json)
        return
    from enginefarm.cli.layers import print_layers
    from enginefarm.tables.layers import layers_of

    found = layers_of(store, manifest)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    print_layers(found, title)


def _show_manifest(manifest: Manifest, title: str, as_json: bool) -> None:
    from enginefarm.documents import facts

    if as_json:
        print_json(manifest.model_dump(mode="json"))
        return
    engine, toolchain = manifest.engine, manifest.spec.toolchain
    lines = (
        facts.Line("engine", f"{engine.digest[:12]}, {engine.size_bytes / 1e6:,.1f} MB"),
        facts.Line("toolchain", f"{toolchain.name} {toolchain.build}"),
        *facts.lineage(manifest),
        *facts.accuracy(manifest),
    )
    width = max(len(line.label) for line in lines)
    click.echo(plain(title))
    for line in lines:
        click.echo(plain(f"  {line.label:<{width}}  {line.text}"))


def find(
    store: EngineStore, what: str, gpu: str | None, precision: str | None, command: str = "show"
) -> Manifest:
    """The manifest with that spec digest or its beginning; else the newest engine of the recipe.

    what: a digest, NAME, NAME/GPU or NAME/GPU/PRECISION.
    Raises: StoreMissing; UsageError when several specs begin with these digits.
    """
    from enginefarm.store.channels import named

    found = by_digest(store, what, command) if SPEC.fullmatch(what) else None
    if found is not None:
        return found
    name, *of = what.split("/")
    named(name)
    given = [*of, None, None][:2] if of else [gpu, precision]
    of_name = store.manifests(name, *given) if len(of) < 3 else ()
    newest = max(of_name, key=lambda one: one.created_at, default=None)
    if newest is None:
        raise store.no_engine(name, command)
    return newest


def by_digest(store: EngineStore, beginning: str, command: str = "show") -> Manifest | None:
    if len(beginning) == 64:
        return store.manifest(beginning)
    digests = list(store.digests(beginning))
    if len(digests) > 1:
        raise UsageError(
            f"{command}: {len(digests)} specs begin with {beginning}",
            fix=f"give more digits: {', '.join(digest[:16] for digest in digests[:5])}",
        )
    return store.manifest(digests[0]) if digests else None


@click.command()
@click.argument("recipe", shell_complete=completion.engines)
@gpu_option("The GPU that it was built for.", required=True)
@precision_option("The precision; needed when the recipe has several.")
@click.option(
    "--failed", is_flag=True, help="Print the last failed build even if an engine exists."
)
def log(recipe: str, gpu: str, precision: str | None, failed: bool) -> None:
    """Print the log of RECIPE's newest build for a GPU, whether it succeeded or failed.

    Logs of failed builds are kept in the store for 30 days, the last five of each engine.
    """
    from enginefarm.documents.gpus import gpu as row_of
    from enginefarm.store import failed_builds
    from enginefarm.store.cache import BlobCache
    from enginefarm.store.channels import named

    label = row_of(gpu).label
    named(recipe)
    store = open_store()
    failures = failed_builds.listed(store, recipe, label, precision)
    engines = [
        one for one in store.manifests(recipe, label, precision) if one.build.log is not None
    ]
    found = sorted({one.precision for one in engines} | {one.precision for one in failures})
    if len(found) > 1:
        raise UsageError(
            f"log: {recipe} has several precisions for {label}: {', '.join(found)}",
            fix=f"enginefarm log {recipe} --gpu {label} --precision {found[0]}",
        )
    newest = max(engines, key=lambda one: one.created_at, default=None)
    if failures and (failed or newest is None or failures[0].at > newest.created_at):
        text = failed_builds.read(store, failures[0])
        click.echo(f"failed at {failures[0].at:%Y-%m-%d %H:%M} UTC: {failures[0].key}\n", err=True)
        click.echo(text or "")
        return
    if newest is None or newest.build.log is None or failed:
        raise StoreMissing(
            f"log: the store has no log of building {recipe} for {label}",
            why="no build of it has ended, or its log was deleted",
            fix=f"enginefarm list {recipe} lists the engines in the store",
        )
    path = BlobCache().ensure(store, newest.build.log)
    click.echo(f"built at {newest.created_at:%Y-%m-%d %H:%M} UTC: {newest.spec.label}\n", err=True)
    click.echo(path.read_bytes().decode("utf-8", "replace"))
