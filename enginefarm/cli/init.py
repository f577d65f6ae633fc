"""`enginefarm init`, and what `build MODEL` shares with it: a recipe for a model without one."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from enginefarm.cli.options import NamedPath, gpus_option, precisions_option, together
from enginefarm.errors import UsageError

if TYPE_CHECKING:
    from enginefarm.recipes.infer import Wishes


model_options = together(
    click.option(
        "--input",
        "inputs",
        multiple=True,
        metavar="NAME:DTYPE:DIM,…",
        help="An input of a PyTorch model, in order (repeat).",
    ),
    click.option(
        "--dim",
        "dims",
        multiple=True,
        metavar="DIM=MIN,OPT,MAX",
        help="The range of a dynamic dim (repeat); the first dim has a default.",
    ),
    click.option(
        "--calibration", metavar="FILE.npz", help="Representative inputs, for int8 and fp8."
    ),
    click.option(
        "--name",
        help="The name of the engines. By default, that of the model's file; its folder's "
        "name if the file is called model or main.",
    ),
)
"""The options for what a model's file does not contain."""


@click.command()
@click.argument("model")
@gpus_option("The GPUs to build for (repeat, or with commas).")
@precisions_option("The precisions to build (repeat, or with commas); fp16 by default.")
@model_options
@click.option(
    "--save",
    type=NamedPath(path_type=Path),
    help="Write the recipe to this file; by default it is printed.",
)
def init(
    model: str,
    gpus: tuple[str, ...],
    precisions: tuple[str, ...],
    save: Path | None,
    **given: Any,
) -> None:
    """Write a recipe for MODEL: an .onnx or .pt2 file, or FILE.py:CALLABLE."""
    from enginefarm.recipes import infer

    wanted = wishes(gpus, precisions, **given)
    at = save.resolve().parent if save else infer.folder_of(model)
    text = infer.infer(model, wanted, at)
    if save is None:
        click.echo(text, nl=False)
        return
    click.echo(f"wrote {infer.save_new(text, save)}; next: enginefarm build {save}")


def wishes(
    gpus: tuple[str, ...], precisions: tuple[str, ...], *, calibration: str | None, **given: Any
) -> Wishes:
    """given: the other options of `model_options`.

    Raises: UsageError without a GPU; GpuError for an unknown one.
    """
    from enginefarm.documents.gpus import gpu
    from enginefarm.recipes.infer import Wishes

    if not gpus:
        raise UsageError(
            "which GPUs should this model run on?", fix="--gpu t4,l4; enginefarm gpus lists them"
        )
    for label in gpus:
        gpu(label)
    npz = None if calibration is None else str(Path(calibration).resolve())
    return Wishes(gpus, precisions or ("fp16",), calibration=npz, **given)


@contextmanager
def recipe_of(model: str, wanted: Wishes, save: Path | None) -> Generator[Path]:
    """A recipe file for the model while the block runs, or for good where it is saved."""
    from enginefarm.recipes import infer, model_paths

    if save is not None:
        text = infer.infer(model, wanted, save.resolve().parent)
        click.echo(text, err=True)
        yield infer.save_new(text, save)
        return
    if model_paths.kind_of(model) is not None:
        # Its paths are whole, so it can be anywhere.
        with tempfile.TemporaryDirectory(prefix="enginefarm-recipe-") as folder:
            text = infer.infer(model, wanted, Path(folder))
            click.echo(text, err=True)
            yield infer.save_new(text, Path(folder, "recipe.yaml"))
        return
    at = infer.folder_of(model)
    text = infer.infer(model, wanted, at)
    click.echo(text, err=True)
    # Code is imported from its recipe's folder alone, so the recipe has to be there.
    with tempfile.NamedTemporaryFile("w", prefix=".enginefarm-", suffix=".yaml", dir=at) as file:
        file.write(text)
        file.flush()
        yield Path(file.name)
