"""Infers a recipe for a model: from the model itself, from flags, and from defaults.

An ONNX file and a `.pt2` program say what their inputs are. For a `file.py:callable` they are given
by hand.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, cast

from enginefarm.documents.builder import DTYPES
from enginefarm.documents.recipe import CALIBRATED
from enginefarm.errors import RecipeError, UsageError
from enginefarm.recipes import file as recipe_file
from enginefarm.recipes import pt2_inputs
from enginefarm.recipes.model_paths import CALLABLE, kind_of, refuse
from enginefarm.recipes.pt2_inputs import ProgramInputs

BATCH = (1, 8, 32)
"""min, opt and max of a dynamic first dim that no flag bounds."""
SCHEMA_LINE = "# yaml-language-server: $schema=recipe.schema.json (enginefarm schema > that file)\n"


class Wishes(NamedTuple):
    """What flags say: labels, precisions, `NAME:DTYPE:DIM,…` inputs, `DIM=MIN,OPT,MAX` ranges."""

    gpus: tuple[str, ...]
    precisions: tuple[str, ...] = ("fp16",)
    inputs: tuple[str, ...] = ()
    dims: tuple[str, ...] = ()
    calibration: str | None = None
    name: str | None = None


def folder_of(given: str) -> Path:
    """The folder that relative paths of the model's recipe start from."""
    found = CALLABLE.match(given)
    return Path(found["file"] if found else given).resolve().parent


def infer(given: str, wishes: Wishes, at: Path) -> str:
    """The YAML text of a recipe for that model, with comments; it is valid as it is.

    given: a path of an .onnx or .pt2 file, or `file.py:callable`. at: the folder that the recipe
        will be in; for a callable it has to be the folder of its file.
    Raises: UsageError for a flag, RecipeError for the model or for what comes of it.
    """
    path = Path(given)
    found = CALLABLE.match(given)
    if found:
        source: dict[str, Any] = {"kind": "torch", "callable": _callable(found, at)}
    else:
        kind = kind_of(given)
        if kind is None or not path.is_file():
            refuse(given)
        source = {"kind": kind, "path": _from(at, path)}
    inputs, limits = [_parse_input(text) for text in wishes.inputs], {}
    if not inputs and not found:
        inputs, limits = READERS[source["kind"]](path)
    if not inputs:
        raise UsageError(
            f"{given}: its inputs are not known",
            why="only a file of a graph says what its inputs are, and code does not",
            fix="name each input, in order: --input images:float32:batch,3,224,224",
        )
    fields: dict[str, Any] = {
        "name": wishes.name or _name(Path(found["file"]).resolve() if found else path.resolve()),
        "source": source,
        "inputs": inputs,
    }
    ranges = _ranges(inputs, wishes.dims, limits)
    if ranges:
        fields["profiles"] = [{"dims": ranges}]
    fields |= {"precisions": [*wishes.precisions], "gpus": [*wishes.gpus]}
    if wishes.calibration:
        fields["calibration"] = {"data": {"path": wishes.calibration}}
    elif uncalibrated := [name for name in wishes.precisions if name in CALIBRATED]:
        raise UsageError(
            f"--precision {','.join(uncalibrated)} needs calibration data",
            why="the ranges of 8 bits come from representative inputs",
            fix="add --calibration FILE.npz with one array for each input, or drop the precision",
        )
    text = _to_yaml(fields)
    recipe_file.parse(text, name=f"the recipe inferred for {given}")
    return text


def save_new(text: str, dest: Path) -> Path:
    """Writes the recipe, and nothing over an existing file. Raises: UsageError."""
    try:
        with dest.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(
            f"{dest}: the file already exists", fix="name another file, or delete this one"
        ) from None
    except OSError as error:
        raise UsageError(f"{dest}: it cannot be written", why=str(error.strerror)) from error
    return dest


def _from(folder: Path, path: Path) -> str:
    """The path from that folder where it is below it, else the whole path."""
    whole, root = path.resolve(), folder.resolve()
    return str(whole.relative_to(root)) if whole.is_relative_to(root) else str(whole)


def _callable(found: re.Match[str], at: Path) -> str:
    file = Path(found["file"])
    if not file.is_file():
        raise RecipeError(f"{file}: the file does not exist", fix="give FILE.py:CALLABLE")
    if file.resolve().parent != at.resolve():
        raise UsageError(
            f"a recipe in {at} cannot name code in {file.resolve().parent}",
            why="code is imported only from the folder of its recipe",
            fix=f"save the recipe in {file.resolve().parent}",
        )
    return f"{file.name}:{found['name']}"


def _name(path: Path) -> str:
    stem = path.parent.name if path.stem in ("model", "main") else path.stem
    name = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:60]
    return name or "model"


def _parse_input(text: str) -> dict[str, Any]:
    name, _, rest = text.partition(":")
    dtype, colon, dims = rest.partition(":")
    if not name or dtype not in DTYPES or not colon:
        raise UsageError(
            f"--input {text} is not NAME:DTYPE:DIM,DIM",
            why=f"the dtype is one of {', '.join(DTYPES)}",
            fix="for example --input images:float32:batch,3,224,224",
        )
    shape = [int(dim) if dim.isdigit() else dim for dim in dims.split(",") if dim]
    return {"name": name, "dtype": dtype, "shape": shape}


def _program_inputs(path: Path) -> ProgramInputs:
    return pt2_inputs.read(path, lambda tensor, axis: _dim("", tensor, axis))


def _onnx_inputs(path: Path) -> ProgramInputs:
    """Its inputs, each dynamic dim with a name that a recipe takes."""
    onnx: Any = import_module("onnx")  # its functions are typed in part
    from_onnx = {
        **{getattr(onnx.TensorProto, row.onnx): name for name, row in DTYPES.items()},
        onnx.TensorProto.DOUBLE: "float32",  # as the graph is read
    }
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:
        raise RecipeError(f"{path} is not an ONNX file", why=str(error)[:200]) from error
    weights = {tensor.name for tensor in graph.initializer}
    found: list[dict[str, Any]] = []
    for value in graph.input:
        if value.name in weights:
            continue
        tensor = value.type.tensor_type
        where = f"{path}: a recipe cannot be inferred for input {value.name!r}"
        if tensor.elem_type not in from_onnx:
            kind = (
                onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
                if value.type.HasField("tensor_type")
                else "a value of another kind than a tensor"
            )
            raise RecipeError(
                where,
                why=f"the graph takes {kind} there, and an engine takes "
                f"{', '.join(dict.fromkeys(from_onnx.values()))}",
                fix="export the model with an input of one of these types",
            )
        if not tensor.HasField("shape"):
            raise RecipeError(
                where,
                why="the graph does not say how many dims it has",
                fix="name the inputs yourself: --input NAME:DTYPE:DIM,DIM",
            )
        shape = [
            dim.dim_value if dim.dim_value > 0 else _dim(dim.dim_param, value.name, axis)
            for axis, dim in enumerate(tensor.shape.dim)
        ]
        found.append({"name": value.name, "dtype": from_onnx[tensor.elem_type], "shape": shape})
    return ProgramInputs(found, {})


READERS = {"onnx": _onnx_inputs, "exported_program": _program_inputs}
"""Kind of source -> what reads its inputs."""


def _dim(given: str, tensor: str, axis: int) -> str:
    """A name for a dynamic dim: the graph's own, or the first axis is the batch."""
    name = re.sub(r"[^a-z0-9]+", "_", given.lower()).strip("_")
    if name and not name[0].isdigit():
        return name[:60]
    own = re.sub(r"[^a-z0-9]+", "_", tensor.lower()).strip("_") or "input"
    return "batch" if axis == 0 else f"dim_{own[:40]}_{axis}"


def _ranges(
    inputs: Sequence[Mapping[str, Any]],
    flags: Sequence[str],
    limits: Mapping[str, tuple[int, int | None]],
) -> dict[str, list[int]]:
    """min, opt and max of each dynamic dim: a flag's, or BATCH for a first dim, within the limits
    that the model has."""
    first = {str(tensor["shape"][0]) for tensor in inputs if tensor["shape"]}
    wanted = {dim: None for tensor in inputs for dim in tensor["shape"] if isinstance(dim, str)}
    given_ranges: dict[str, list[int]] = {}
    for flag in flags:
        name, _, numbers = flag.partition("=")
        parts = [int(part) for part in numbers.split(",") if part.isdigit()]
        if name not in wanted or len(parts) not in (1, 3):
            raise UsageError(
                f"--dim {flag} is not DIM=MIN,OPT,MAX of a dynamic dim",
                why=f"the dynamic dims are {', '.join(wanted) or 'none: every dim is fixed'}",
                fix="for example --dim batch=1,8,32",
            )
        given_ranges[name] = parts * 3 if len(parts) == 1 else parts
    lacking = [dim for dim in wanted if dim not in given_ranges and dim not in first]
    if lacking:
        raise UsageError(
            f"the size of {', '.join(lacking)} is not known",
            why="the model leaves it open, and only the first dim has a default "
            f"({', '.join(map(str, BATCH))})",
            fix=" ".join(f"--dim {dim}=MIN,OPT,MAX" for dim in lacking),
        )
    by_default = {
        dim: [min(max(size, least), most or size) for size in BATCH]
        for dim, (least, most) in {dim: limits.get(dim, (1, None)) for dim in wanted}.items()
    }
    return {dim: given_ranges.get(dim, by_default[dim]) for dim in wanted}


COMMENTS = {
    "name": "engines are pulled by this name",
    "profiles": "min, opt, max of each dynamic dim",
    "precisions": "fp32, fp16, bf16; int8 and fp8 with `calibration`",
    "gpus": "labels: enginefarm gpus",
    "calibration": "representative inputs for int8 and fp8",
}
VERIFICATION = (
    "# verification:            # without your own data, engines are compared on seeded random\n"
    "#   data: { path: held_out.npz } # inputs, and every table says so\n"
)


def _to_yaml(fields: Mapping[str, Any]) -> str:
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    def flow(value: Any) -> Any:
        made: Any = value
        if isinstance(value, dict):
            made = CommentedMap(value)
        elif isinstance(value, list):
            made = CommentedSeq(value)
        else:
            return value
        made.fa.set_flow_style()
        return made

    made: Any = CommentedMap()
    for name, value in fields.items():
        if name in ("inputs", "profiles"):
            made[name] = CommentedSeq([flow(one) for one in value])
        else:
            made[name] = flow(value)
        if name in COMMENTS and name not in ("profiles", "inputs"):
            made.yaml_add_eol_comment(COMMENTS[name], name)
        elif name in COMMENTS:
            made.yaml_set_comment_before_after_key(name, before=COMMENTS[name])
    text, yaml = io.StringIO(), cast("Any", YAML())
    yaml.width = 200
    yaml.indent(sequence=4, offset=2)
    yaml.dump(made, text)
    return SCHEMA_LINE + text.getvalue() + VERIFICATION
