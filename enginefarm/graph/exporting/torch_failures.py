"""What an error of PyTorch's exporter is about: a dim, an operator, a line of the user's code."""

from __future__ import annotations

import inspect
import re
import sysconfig
from pathlib import Path
from typing import Any

from enginefarm.documents.recipe import Recipe
from enginefarm.errors import ExportError, one_line

STDLIB = sysconfig.get_path("stdlib")
FIXES = {
    "transformers.grouped_mm_fallback": "model.set_experts_implementation('batched_mm') before the "
    "model is returned, which computes its experts with operators that can be exported"
}
"""Operators for which the code that calls them has another one."""


def of_export(error: Exception, model: Any, recipe: Recipe) -> ExportError:
    """torch's error, many pages long, as one that names the dim or the first cause."""
    text = str(error)
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
        text += f"\n{cause}"
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    fixed = re.search(r"(?:inputs|L)\['(\w+)'\]\.(?:shape|size\(\))\[(\d+)\]", text)
    dim = _dim_at(model, recipe, fixed[1], int(fixed[2])) if fixed else None
    if dim is not None and re.search("static|speciali|constant", text):
        return ExportError(
            f"inputs: dim {dim[1]!r} of {dim[0]!r} is not dynamic: the model fixes it",
            why=one_line(cause, 300),
            fix="take the fixed number out of the model's forward, or write it in the recipe "
            f"in place of `{dim[1]}`",
        )
    operator = _operator(text)
    what = f": the operator {operator}" if operator else ""
    return ExportError(
        f"torch.onnx.export failed for {recipe.name}{what}",
        why=one_line(f"{type(cause).__name__}: {cause}") + place(error),
        fix=FIXES.get(operator or "")
        or "write that part of forward with other operators. If its sizes depend on a dynamic "
        f"dim ({', '.join(recipe.dynamic_dims) or 'none here'}), a fixed size in the recipe may "
        "be enough",
    )


def _operator(text: str) -> str | None:
    """The operator that torch's error is about, as torch calls it: `aten.grid_sampler_2d`."""
    found = (
        re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", text)
        or re.search(r"translating node .*?target=torch\.ops\.([\w.]+)\]", text, re.DOTALL)
        or re.search(r"While executing .*?target=(?:torch\.ops\.)?([\w.]+)\]", text, re.DOTALL)
    )
    return found[1].removesuffix(".default") if found else None


def place(error: BaseException) -> str:
    """Where the user's own code was when torch gave up, in words to append."""
    last: tuple[str, int] | None = None
    cause: BaseException | None = error
    while cause is not None:
        trace = cause.__traceback__
        while trace is not None:
            file = trace.tb_frame.f_code.co_filename
            own = not file.startswith((STDLIB, "<")) and "site-packages" not in file
            if own and "enginefarm" not in Path(file).parts[-4:]:
                last = (file, trace.tb_lineno)
            trace = trace.tb_next
        cause = cause.__cause__
    written = re.findall(r'File "([^"]+)", line (\d+), in forward', str(error))
    own = [(file, int(line)) for file, line in written if "site-packages" not in file]
    last = own[-1] if own else last
    return f"; at {Path(last[0]).name}, line {last[1]}" if last else ""


def _dim_at(model: Any, recipe: Recipe, argument: str, axis: int) -> tuple[str, str] | None:
    """The recipe's input and dim for an argument of forward, as torch names it."""
    arguments = list(inspect.signature(model.forward).parameters)
    if argument not in arguments or arguments.index(argument) >= len(recipe.inputs):
        return None
    tensor = recipe.inputs[arguments.index(argument)]
    dim = tensor.shape[axis] if axis < len(tensor.shape) else None
    return (tensor.name, dim) if isinstance(dim, str) else None
