"""ONNX files: read with limits, written in one normal form.

The normal form is `model.onnx`, with `model.onnx.data` next to it when the tensors are
large, without doc strings, stack traces or paths, serialized deterministically: the same
graph has the same bytes, and so the same digest.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginefarm.errors import EnginefarmError, SourceError, one_line
from enginefarm.graph.model import external_data, walk
from enginefarm.graph.model.functions import inlined

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import ModelProto

MODEL_NAME = "model.onnx"
DATA_NAME = "model.onnx.data"
EXTERNAL_ABOVE_BYTES = 1_500_000_000
"""A protobuf message ends at 2 GiB; this leaves room for the graph itself."""
OURS = "enginefarm."
"""Metadata whose key begins so is ours, and part of what the normal form keeps."""
EXTERNAL_FROM_BYTES = 1024
"""Smaller tensors stay in the model: shape inference looks at their values."""
LIMIT_NODES = 1_000_000
LIMIT_DIM = 1 << 31
MIN_BYTES = 16


def read(path: Path, *, error: type[EnginefarmError] = SourceError, field: str = "") -> ModelProto:
    """The model, its external data in memory, its local functions written into the graph.

    Raises: `error` for a file that is empty, cut short, not ONNX, larger than the limits,
    or whose external data is missing or lies outside its folder.
    """
    import onnx

    name = f"{field}: {path.name}" if field else str(path)
    model = _parsed(path, name, error)
    model = inlined(model, name, limit_nodes=LIMIT_NODES, error=error)
    _limits(model, name, error)
    for tensor in walk.tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            external_data.read(tensor, path.parent, name, error)
    return model


def graph_only(path: Path, *, name: str = "") -> ModelProto:
    """The model without its external data: cheap, whatever the weights.

    name: how errors name the file. Raises: SourceError when it is not ONNX.
    """
    return _parsed(path, name or path.name, SourceError)


def _parsed(path: Path, name: str, error: type[EnginefarmError]) -> ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    try:
        size = path.stat().st_size
        if size < MIN_BYTES:
            raise error(
                f"{name} is not an ONNX model",
                why="the file is empty" if size == 0 else f"it has {size} bytes",
                fix="copy or export it again",
            )
        model.ParseFromString(path.read_bytes())
    except OSError as cause:
        raise error(f"{name} cannot be read", why=str(cause.strerror or cause)) from cause
    except DecodeError as cause:
        with path.open("rb") as file:
            if file.read(8).endswith(b"ORTM"):
                raise error(
                    f"{name} is in ONNX Runtime's own format (.ort), which nothing else reads",
                    fix="use the ONNX file that it was made from",
                ) from cause
        raise error(
            f"{name} is not an ONNX model, or was cut short",
            why=f"protobuf: {cause}",
            fix="copy or export it again; bodies inside bodies of If, Loop and Scan are read to a "
            "depth of about 30",
        ) from cause
    return model


def write(model: ModelProto, dest_dir: Path, weights: ModelProto | None = None) -> Path:
    """Writes the model in normal form; returns the path of `model.onnx`.

    weights: the model that holds the weights if `model` is of `onnx_shapes.without_weights`.
    `model` is changed: see `normalize`. `weights` is not.
    """
    dest_dir.mkdir(parents=True, exist_ok=True)
    path, data = dest_dir / MODEL_NAME, dest_dir / DATA_NAME
    data.unlink(missing_ok=True)  # it may be another name of a file in the cache
    normalize(model)
    held = {tensor.name: tensor for tensor in weights.graph.initializer} if weights else {}
    if held or sum(len(one.raw_data) for one in walk.tensors(model)) > EXTERNAL_ABOVE_BYTES:
        external_data.write(walk.tensors(model), data, held, above_bytes=EXTERNAL_FROM_BYTES)
    partial = path.with_suffix(".partial")
    partial.write_bytes(model.SerializeToString(deterministic=True))
    partial.replace(path)
    return path


def files(path: Path) -> tuple[Path, ...]:
    """The model and, where it has one, its external data."""
    data = path.with_name(DATA_NAME)
    return (path, data) if path.name == MODEL_NAME and data.exists() else (path,)


def normalize(model: ModelProto) -> None:
    """Takes away what says where and when the file was made; keeps what it computes."""
    model.producer_name = model.producer_version = model.domain = model.doc_string = ""
    model.model_version = 0
    ours = [(item.key, item.value) for item in model.metadata_props if item.key.startswith(OURS)]
    del model.metadata_props[:]
    for key, value in ours:
        model.metadata_props.add(key=key, value=value)
    owners: list[Any] = [*walk.graphs(model.graph), *model.functions]
    for owner in owners:
        parts = [owner, *owner.node, *owner.value_info]
        if hasattr(owner, "initializer"):  # the inputs and outputs of a function are names
            parts += [*owner.input, *owner.output, *owner.initializer]
        for part in parts:
            part.doc_string = ""
            del part.metadata_props[:]


def check(path: Path, *, error: type[EnginefarmError], what: str) -> None:
    """onnx.checker with full shape inference.

    Raises: `error` whose cause names the node that is at fault.
    """
    from onnx.checker import check_model  # pyright: ignore[reportUnknownVariableType]

    try:
        try:
            check_model(os.fspath(path), full_check=True)
        except Exception as cause:
            if not _of_a_definition(cause):
                raise
            check_model(os.fspath(path))
    except Exception as cause:
        named = any(word in str(cause).lower() for word in ("node", "op_type"))
        other = "export the model again; `onnx.checker.check_model` says the same of it"
        fix = "see the node named above" if named else other
        raise error(f"{what} is not a valid ONNX model", why=one_line(cause), fix=fix) from cause


def _of_a_definition(cause: Exception) -> bool:
    """Whether shape inference failed inside onnx's own definition of an operator: onnx 1.23 cannot
    infer the Constants in that of MeanVarianceNormalization. The model is not at fault."""
    import re

    import onnx

    levels: list[str] = re.findall(r"Inference error\(s\): \(op_type:(\w+)", str(cause))
    if len(levels) < 2:
        return False
    try:
        schema: Any = onnx.defs.get_schema(levels[0])  # typed in part
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function)


def broken_tensor(model: ModelProto) -> str | None:
    """What is wrong with the first tensor that cannot be used: NaN, infinities of both signs, or
    a size that is not its shape's. None when all are sound.

    Infinities of one sign are not damage: masks and limits are made of them, and whether the
    model's numbers are sound is seen where it is run.
    """
    import numpy as np
    from onnx import TensorProto, numpy_helper

    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    for tensor in walk.tensors(model):
        if tensor.data_type not in floats:
            continue
        try:
            values = numpy_helper.to_array(tensor)
        except Exception as error:
            return f"tensor {tensor.name!r} cannot be read ({one_line(error, 200)})"
        if np.isnan(values).any():
            return f"tensor {tensor.name!r} holds NaN"
        if np.isposinf(values).any() and np.isneginf(values).any():
            return f"tensor {tensor.name!r} holds infinities of both signs"
    return None


def refuse_empty(model: ModelProto, name: str, error: type[EnginefarmError]) -> None:
    """Raises: `error` for what parses as ONNX and has nothing to compute."""
    if not model.graph.node or not model.graph.output:
        raise error(
            f"{name} is not an ONNX model",
            why="it has no outputs" if model.graph.node else "it has no nodes",
            fix="text and empty files also parse as ONNX: check what the file is",
        )


def _names(model: ModelProto) -> Iterator[object]:
    for graph in walk.graphs(model.graph):
        yield graph.name
        for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            yield value.name
        for node in graph.node:
            yield from (node.name, node.op_type, node.domain, *node.input, *node.output)


def _limits(model: ModelProto, name: str, error: type[EnginefarmError]) -> None:
    refuse_empty(model, name, error)
    # protobuf hands out what is not UTF-8 as bytes
    damaged = next((one for one in _names(model) if isinstance(one, bytes)), None)
    if damaged is not None:
        raise error(
            f"{name} is not a valid ONNX model",
            why=f"a name in it is not UTF-8: {damaged!r:.200}",
            fix="copy or export it again",
        )
    nodes = sum(1 for _ in walk.nodes(model.graph))
    if nodes > LIMIT_NODES:
        raise error(f"{name}: {nodes} nodes is over the limit of {LIMIT_NODES}")
    for tensor in walk.tensors(model):
        for dim in tensor.dims:
            if not 0 <= dim <= LIMIT_DIM:
                raise error(f"{name}: tensor {tensor.name!r} has a dim of {dim}")
