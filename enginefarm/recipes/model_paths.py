"""Which paths name a model, and what to do about those that name something else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NoReturn

from enginefarm.errors import RecipeError
from enginefarm.recipes import bound_names

CALLABLE = re.compile(r"^(?P<file>.+\.py):(?P<name>[A-Za-z_][\w.]*)$")
KINDS = {".onnx": "onnx", ".pt2": "exported_program"}
"""Suffix -> kind of source."""

WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
AS_A_RECIPE = "source: {{ kind: torch, callable: model.py:build, checkpoint: {name} }}"


def is_model(given: str) -> bool:
    """Whether this names a model rather than a recipe."""
    return kind_of(given) is not None or CALLABLE.match(given) is not None


def kind_of(given: str) -> str | None:
    """The kind of source that reads such a file; None for a callable and all else."""
    return KINDS.get(Path(given).suffix.lower())


def refuse_other(given: str) -> None:
    """Raises: RecipeError for code without a callable, and for weights without their code."""
    path = Path(given)
    if path.suffix == ".py" and path.is_file():
        names = bound_names.defined(path)
        raise RecipeError(
            f"{given}: which function in it returns the model?",
            why=f"it defines {', '.join(names)}" if names else "",
            fix=f"name the function: {given}:{names[0] if len(names) == 1 else 'NAME'}",
        )
    if path.suffix.lower() in WEIGHTS and path.is_file():
        raise RecipeError(
            f"{given}: these are the weights of a model, without its code",
            fix="write a function that returns the nn.Module, and name both in a recipe: "
            + AS_A_RECIPE.format(name=path.name),
        )


def refuse(given: str) -> NoReturn:
    """Raises: RecipeError, always: it says why this path does not name a model."""
    refuse_other(given)
    if "://" in given:
        raise RecipeError(
            f"{given} is not a file",
            fix="download it, or write a recipe: `source: { kind: onnx, path: s3://… }`",
        )
    path = Path(given)
    if path.is_file():
        raise RecipeError(
            f"{given} is not a model that can be built",
            why=f"a model is an {' or '.join(KINDS)} file, or FILE.py:CALLABLE",
            fix="export it to ONNX",
        )
    raise RecipeError(
        f"{given}: it is a folder" if path.is_dir() else f"{given}: the file does not exist",
        fix="give the path of the model: an .onnx or .pt2 file, or FILE.py:CALLABLE",
    )
