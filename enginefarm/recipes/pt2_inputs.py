"""The inputs of a .pt2 program, as its archive says them; nothing of it is loaded."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from enginefarm.errors import RecipeError

LONGEST = 1 << 28
"""Bytes of the largest description of a program that is read."""

MODEL = re.compile(r"[^/]+/models/model\.json")
DTYPES = {
    **{1: "uint8", 2: "int8", 4: "int32", 5: "int64"},
    **{6: "float16", 7: "float32", 12: "bool", 13: "bfloat16"},
}
"""torch's own number of a type in the archive -> name."""

SYMBOL = re.compile(r"(?:Symbol\(')?(\w+)(?:'.*\))?")


class ProgramInputs(NamedTuple):
    """inputs: as a recipe lists them. ranges: least and largest size of each dynamic dim, where the
    program says so."""

    inputs: list[dict[str, Any]]
    ranges: dict[str, tuple[int, int | None]]


def read(path: Path, name_dim: Callable[[str, int], str]) -> ProgramInputs:
    """name_dim: makes the name of a dynamic dim out of its input and axis.

    Raises: RecipeError when the file is not a program, or an input of it has no place in a recipe.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            member = next(name for name in archive.namelist() if MODEL.fullmatch(name))
            if archive.getinfo(member).file_size > LONGEST:
                raise ValueError(f"{member} has more than {LONGEST} bytes")
            program: Any = json.loads(archive.read(member))
        return _inputs(program, name_dim, path)
    except (OSError, zipfile.BadZipFile, RuntimeError, ValueError, RecursionError) as error:
        raise _not_a_program(path, str(error)) from error
    except (StopIteration, KeyError, TypeError, AttributeError, IndexError) as error:
        why = "it does not describe its inputs as torch.export.save does"
        raise _not_a_program(path, why) from error


def _inputs(program: Any, name_dim: Callable[[str, int], str], path: Path) -> ProgramInputs:
    graph = program["graph_module"]["graph"]
    names: dict[str, str] = {}
    found: list[dict[str, Any]] = []
    for one in program["graph_module"]["signature"]["input_specs"]:
        argument = one.get("user_input", {}).get("arg", {})
        if "as_tensor" not in argument:
            continue  # a weight, or a plain value that the program has fixed
        name = str(argument["as_tensor"]["name"])
        about = graph["tensor_values"][name]
        if about["dtype"] not in DTYPES:
            raise RecipeError(
                f"{path}: a recipe cannot be inferred for input {name!r}",
                why=f"an engine takes {', '.join(DTYPES.values())} there, and no other type",
                fix="export the program with an input of one of these types",
            )
        shape = [
            _dim(size, names, lambda axis=axis, name=name: name_dim(name, axis), path)
            for axis, size in enumerate(about["sizes"])
        ]
        found.append({"name": name, "dtype": DTYPES[about["dtype"]], "shape": shape})
    limits = program["range_constraints"]
    ranges = {
        dim: (max(int(limits[symbol]["min_val"] or 1), 1), limits[symbol]["max_val"])
        for symbol, dim in names.items()
        if symbol in limits
    }
    return ProgramInputs(found, ranges)


def _dim(size: Any, names: dict[str, str], name: Callable[[], str], path: Path) -> int | str:
    if "as_int" in size:
        return int(size["as_int"])
    expression = str(size["as_expr"]["expr_str"])
    symbol = SYMBOL.fullmatch(expression)
    if symbol is None:
        raise RecipeError(
            f"{path}: a recipe cannot be inferred: a dim is {expression[:100]}",
            why="the dims of a recipe are independent of one another",
            fix="name the inputs yourself: --input NAME:DTYPE:DIM,DIM",
        )
    if symbol[1] not in names:
        given = name()
        names[symbol[1]] = given if given not in names.values() else f"{given}_{len(names)}"
    return names[symbol[1]]


def _not_a_program(path: Path, why: str) -> RecipeError:
    return RecipeError(
        f"{path} is not a program of torch.export",
        why=why[:200],
        fix="save it with torch.export.save",
    )
