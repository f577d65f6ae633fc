"""`enginefarm recipes`: recipes that are kept in the store, for the farm to build."""

from __future__ import annotations

from pathlib import Path

import click

from enginefarm.cli import completion
from enginefarm.cli.options import NamedPath
from enginefarm.cli.tables import print_json, print_table
from enginefarm.store import open_store


@click.group()
def recipes() -> None:
    """Manage the recipes in the store, which `nightly-rebuild` reads as the folder `@store`."""


@recipes.command()
@click.argument("path", type=NamedPath(path_type=Path))
def push(path: Path) -> None:
    """Copy the recipe in the folder PATH to the store, with everything in that folder.

    It replaces the recipe of that name. It is signed when ENGINEFARM_SIGNING_KEY is set.
    It is refused when it needs a file or module outside its folder.
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
