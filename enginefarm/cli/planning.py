"""`enginefarm plan`, `why` and `schema`: what would be built, and how a recipe is written; and
`recipes`, which are kept in the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from enginefarm.cli import completion
from enginefarm.cli.options import NamedPath, gpu_option, precision_option, recipe_argument
from enginefarm.cli.tables import print_json, print_table
from enginefarm.errors import UsageError
from enginefarm.store import open_store

if TYPE_CHECKING:
    from enginefarm.planning.survey import PlannedBuild


@click.command()
@recipe_argument
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(recipe: Path, as_json: bool) -> None:
    """Show each engine that RECIPE asks for, its toolchain, and why it would be built or not."""
    from enginefarm.documents.gpus import gpu
    from enginefarm.documents.support import support as word
    from enginefarm.planning import stages
    from enginefarm.planning.survey import check_source, local_offers, survey
    from enginefarm.recipes import file as recipe_file

    loaded = recipe_file.load(recipe)  # before a store is started for it
    found = survey(stages.here(), loaded, local_offers())
    if found.model is None:
        check_source(loaded)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    rows = [
        (
            planned.target.gpu,
            planned.target.precision,
            f"{planned.target.toolchain.name} {planned.target.toolchain.build}",
            planned.spec.digest[:12] if planned.spec else "–",
            planned.reason,
            word(gpu(planned.target.gpu), planned.target.toolchain.name, planned.target.precision),
            _state(planned),
        )
        for planned in found.builds
    ]
    rows += [
        (
            skip.gpu,
            skip.precision,
            "–",
            "–",
            skip.reason,
            "–",
            "cannot be built" if skip.refused else "skipped",
        )
        for skip in found.skipped
    ]
    header = ("GPU", "precision", "toolchain", "spec", "why", "by NVIDIA's matrix", "state")
    print_table(f"Plan of {found.recipe}", header, rows)


@click.command()
@recipe_argument
@gpu_option("The GPU to ask about.", required=True)
@precision_option("The precision; the recipe's first by default.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def why(recipe: Path, gpu: str, precision: str | None, as_json: bool) -> None:
    """Show, field by field, how RECIPE's spec differs from the nearest one that is built."""
    from enginefarm.planning import plan as planning
    from enginefarm.planning import stages
    from enginefarm.planning.survey import local_offers, survey
    from enginefarm.planning.why import differences, nearest
    from enginefarm.recipes import file as recipe_file

    loaded = recipe_file.load(recipe)
    wanted = planning.narrowed(loaded, gpus=[gpu], precisions=[precision or loaded.precisions[0]])
    site = stages.here()
    found = survey(site, wanted, local_offers())
    if not found.builds:  # the recipe allows to skip it; what is refused has raised
        skip = found.skipped[0]
        reason = f"{skip.gpu}/{skip.precision}: skipped; {skip.reason}"
        raise UsageError(f"why: {reason}", fix="ask about a precision that the GPU has")
    planned = found.builds[0]
    others = [
        manifest.spec
        for manifest in site.store.manifests(wanted.name, gpu=gpu)
        if planned.spec is None or manifest.spec.precision.name == planned.spec.precision.name
    ]
    before = nearest(planned.spec, others) if planned.spec else None
    changes = differences(before, planned.spec) if before and planned.spec else ()
    if as_json:
        print_json(
            {
                "spec_digest": planned.spec.digest if planned.spec else None,
                "cached": planned.cached,
                "nearest": before.digest if before else None,
                "changes": [change.model_dump() for change in changes],
                "reason": planned.reason,
            }
        )
        return
    label = planned.target.label
    if planned.cached and planned.spec:
        spec = planned.spec.digest[:12]
        click.echo(f"{label} is already built, as spec {spec}: nothing has changed")
    elif planned.spec is None:
        click.echo(f"{label} would be built: {planned.reason}")
    elif before is None:
        click.echo(f"{label} would be built: the store has no engine of {wanted.name} for it")
    else:
        click.echo(f"{label} would be built again; the nearest spec is {before.digest[:12]}")
        print_table(
            "What has changed",
            ("field", "built with", "now"),
            [(change.field, change.before, change.after) for change in changes],
        )


@click.command()
@click.option("--json", "as_json", is_flag=True, help="The output is always JSON.")
def schema(as_json: bool) -> None:
    """Print the JSON Schema of a recipe, for the YAML extension of an editor."""
    from enginefarm.recipes.file import json_schema

    print_json(json_schema())


def _state(planned: PlannedBuild) -> str:
    states = {
        "cached": planned.cached,
        "over budget": planned.over_budget,
        "cannot be built": planned.impossible,
    }
    return next((state for state, holds in states.items() if holds), "to build")


@click.group()
def recipes() -> None:
    """Manage the recipes in the store, which `nightly-rebuild` reads as the folder `@store`."""


@recipes.command()
@click.argument("path", type=NamedPath(path_type=Path))
def push(path: Path) -> None:
    """Copy a recipe to the store, with everything in its folder PATH.

    It replaces the recipe of that name, and is signed if ENGINEFARM_SIGNING_KEY is set. A recipe
    that needs a file or module outside its folder is refused.
    """
    from enginefarm.recipes import recipe_store

    made = recipe_store.push(open_store(), path)
    click.echo(f"{made.name}: {len(made.files)} files, {made.size_bytes / 1e6:,.1f} MB")
    click.echo(
        "\nTry next:\n"
        f"  prefect deployment run build-model/build-model -p recipe=@store/{made.name}"
    )


@recipes.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List every recipe in the store, with who pushed it, when, and who signed it."""
    from enginefarm.recipes import recipe_store

    store = open_store()
    found = list(recipe_store.readable(store))
    if as_json:
        rows = [one.model_dump(mode="json") for one in found]
        print_json([{"signatures": row.pop("signatures"), "recipe": row} for row in rows])
        return
    print_table(
        "Recipes in the store",
        ("recipe", "files", "MB", "by", "at", "signed by"),
        [
            (
                one.name,
                str(len(one.files)),
                f"{one.size_bytes / 1e6:,.1f}",
                one.by,
                f"{one.at:%Y-%m-%d %H:%M}",
                " ".join(signature.keyid[:12] for signature in one.signatures) or "nobody",
            )
            for one in found
        ],
    )


@recipes.command()
@click.argument("name", shell_complete=completion.stored)
def remove(name: str) -> None:
    """Remove the recipe NAME from the store. Its engines stay."""
    from enginefarm.recipes import recipe_store

    recipe_store.remove(open_store(), name)
    click.echo(f"removed {name} from the store; its engines stay")
