"""ONNX files: read with limits, written in one normal form.

The normal form is `model.onnx`, with `model.onnx.data` beside it when the tensors are
large, without doc strings, stack traces or paths, serialised deterministically: the same
graph gives the same bytes, and so the same digest.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from enginefarm.errors import EnginefarmError, SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from onnx import GraphProto, ModelProto, TensorProto

MODEL_NAME = "model.onnx"
DATA_NAME = "model.onnx.data"
EXTERNAL_ABOVE_BYTES = 1_500_000_000
"""A protobuf message ends at 2 GiB; this leaves room for the graph itself."""
LIMIT_NODES = 1_000_000
LIMIT_DIM = 1 << 31
MIN_BYTES = 16


def read(path: Path, *, error: type[EnginefarmError] = SourceError, field: str = "") -> ModelProto:
    """The model, its external data in memory.

    Raises: `error` for a file that is empty, cut short, not ONNX, larger than the limits,
    or whose external data is missing or lies outside its folder.
    """
    import onnx
    from google.protobuf.message import DecodeError

    name = f"{field}: {path.name}" if field else str(path)
    model = onnx.ModelProto()
    try:
        size = path.stat().st_size
        if size < MIN_BYTES:
            raise error(
                f"{name}: not an ONNX model",
                why="the file is empty" if size == 0 else f"it has {size} bytes",
                fix="copy or export it again",
            )
        model.ParseFromString(path.read_bytes())
    except OSError as cause:
        raise error(f"{name}: cannot be read", why=str(cause.strerror or cause)) from cause
    except DecodeError as cause:
        raise error(
            f"{name}: not an ONNX model, or cut short",
            why=f"protobuf: {cause}",
            fix="copy or export it again",
        ) from cause
    _limits(model, name, error)
    _load_external(model, path.parent, name, error)
    return model


def write(model: ModelProto, dest_dir: Path) -> Path:
    """Writes the model in normal form; gives the path of `model.onnx`.

    The model is changed: see `normalise`.
    """
    from onnx.external_data_helper import (
        convert_model_to_external_data,
        write_external_data_tensors,
    )

    dest_dir.mkdir(parents=True, exist_ok=True)
    path, data = dest_dir / MODEL_NAME, dest_dir / DATA_NAME
    data.unlink(missing_ok=True)  # external data is appended to what is there
    normalise(model)
    if sum(len(tensor.raw_data) for tensor in tensors(model)) > EXTERNAL_ABOVE_BYTES:
        convert_model_to_external_data(model, location=DATA_NAME, size_threshold=1024)
        write_external_data_tensors(model, str(dest_dir))
        data.chmod(0o644)
    partial = path.with_suffix(".partial")
    partial.write_bytes(model.SerializeToString(deterministic=True))
    partial.replace(path)
    return path


def files(path: Path) -> tuple[Path, ...]:
    """The model and, where it has one, its external data."""
    data = path.with_name(DATA_NAME)
    return (path, data) if path.name == MODEL_NAME and data.exists() else (path,)


def normalise(model: ModelProto) -> None:
    """Takes away what says where and when the file was made; keeps what it computes."""
    model.producer_name = model.producer_version = model.domain = model.doc_string = ""
    model.model_version = 0
    del model.metadata_props[:]
    for graph in graphs(model.graph):
        graph.doc_string = ""
        del graph.metadata_props[:]
        for item in (*graph.node, *graph.value_info, *graph.input, *graph.output):
            item.doc_string = ""
            del item.metadata_props[:]
        for tensor in graph.initializer:
            tensor.doc_string = ""
            del tensor.metadata_props[:]
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]


def check(path: Path, *, error: type[EnginefarmError], what: str) -> None:
    """onnx.checker with full shape inference.

    Raises: `error` whose cause names the node that is at fault.
    """
    from onnx.checker import check_model  # pyright: ignore[reportUnknownVariableType]

    try:
        check_model(os.fspath(path), full_check=True)
    except Exception as cause:
        raise error(
            f"{what}: not a valid ONNX model", why=one_line(cause), fix="see the node named above"
        ) from cause


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and every subgraph in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)
            for inner in attribute.graphs:
                yield from graphs(inner)


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor with values: initializers and constants, subgraphs included."""
    for graph in graphs(model.graph):
        yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Renames values of the main graph, and every use of them; a value that has one of the
    new names already is moved out of the way."""
    taken = {name for node in graph.node for name in node.output}
    taken |= {value.name for value in (*graph.input, *graph.initializer)}
    changes = dict(names)
    for name in names.values():
        if name in taken and name not in names:
            free = next(
                f"{name}_{count}" for count in range(1, 1 << 20) if f"{name}_{count}" not in taken
            )
            changes[name] = free
            taken.add(free)
    for inner in graphs(graph):
        for node in inner.node:
            node.input[:] = [changes.get(name, name) for name in node.input]
            node.output[:] = [changes.get(name, name) for name in node.output]
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = changes.get(value.name, value.name)


def opset(model: ModelProto) -> int:
    """The version of the default operator set; 0 where the model imports none."""
    return next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)


def broken_tensor(model: ModelProto) -> str | None:
    """What is wrong with the first tensor that cannot be used: NaN, infinity, or a size that
    is not its shape's. None when all are sound.

    Infinities are let through in scalars, where graphs use them on purpose (masks, Clip).
    """
    import numpy as np
    from onnx import TensorProto, numpy_helper

    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    for tensor in tensors(model):
        if tensor.data_type not in floats:
            continue
        try:
            values = numpy_helper.to_array(tensor)
        except Exception as error:
            return f"tensor {tensor.name!r} cannot be read ({one_line(error, 200)})"
        bad = np.isnan(values).any() if values.size <= 1 else not np.isfinite(values).all()
        if bad:
            return f"tensor {tensor.name!r} holds NaN or infinity"
    return None


def one_line(error: BaseException | str, limit: int = 500) -> str:
    """An error's text without colour codes and line breaks."""
    import re

    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(error))
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _limits(model: ModelProto, name: str, error: type[EnginefarmError]) -> None:
    nodes = sum(len(graph.node) for graph in graphs(model.graph))
    if nodes == 0 or not model.graph.output:
        raise error(
            f"{name}: not an ONNX model",
            why="it has no nodes" if nodes == 0 else "it has no outputs",
            fix="text and empty files also parse as ONNX: check what the file is",
        )
    if nodes > LIMIT_NODES:
        raise error(f"{name}: {nodes} nodes is over the limit of {LIMIT_NODES}")
    for tensor in tensors(model):
        for dim in tensor.dims:
            if not 0 <= dim <= LIMIT_DIM:
                raise error(f"{name}: tensor {tensor.name!r} has a dim of {dim}")


def _load_external(
    model: ModelProto, folder: Path, name: str, error: type[EnginefarmError]
) -> None:
    from onnx.external_data_helper import (
        ExternalDataInfo,
        load_external_data_for_tensor,
        uses_external_data,
    )

    for tensor in tensors(model):
        if not uses_external_data(tensor):
            continue
        location = ExternalDataInfo(tensor).location
        where = PurePosixPath(location)
        file = folder / location
        if where.is_absolute() or ".." in where.parts or file.is_symlink():
            raise error(
                f"{name}: tensor {tensor.name!r} keeps its data in {location!r}",
                why="external data must be a plain file in the model's own folder",
                fix="save the model again with its data beside it",
            )
        try:
            load_external_data_for_tensor(tensor, os.fspath(folder))
        except Exception as cause:
            raise error(
                f"{name}: the data of tensor {tensor.name!r} cannot be read from {location!r}",
                why=one_line(cause),
                fix="copy the data file beside the model, whole",
            ) from cause
        # Now in memory: the tensor must not say otherwise.
        tensor.ClearField("data_location")
        del tensor.external_data[:]


def input_signature(model: ModelProto) -> dict[str, tuple[str, tuple[Any, ...]]]:
    """Inputs without initializer: name -> (dtype, shape), a dim an int, a name or None."""
    return {
        value.name: _signature(value)
        for value in model.graph.input
        if value.name not in {tensor.name for tensor in model.graph.initializer}
    }


def _signature(value: Any) -> tuple[str, tuple[Any, ...]]:
    from onnx import TensorProto, helper

    kind = value.type.tensor_type
    if kind.elem_type == TensorProto.BFLOAT16:
        dtype = "bfloat16"
    elif kind.elem_type == TensorProto.UNDEFINED:
        dtype = "undefined"
    else:
        dtype = str(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    dims = tuple(
        dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None)
        for dim in kind.shape.dim
    )
    return dtype, dims
