"""The skeleton of a graph: everything but the values of weights that a refit can set.

Two graphs with one skeleton differ in weights that every builder keeps as tensors. What a builder
may read while it parses or fuses stays in the skeleton: integers, the limits of a Clip, the scales
of Q/DQ, what a BatchNormalization folds together, and whatever a body of If, Loop or Scan uses.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginefarm.digest import sha256_bytes
from enginefarm.errors import BuildError
from enginefarm.graph.model import onnx_files, walk
from enginefarm.schema import Frozen

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

KEPT_AS_TENSORS: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "Add": (0, 1),
    "Sub": (0, 1),
    "Mul": (0, 1),
    "Div": (0, 1),
    "Gather": (0,),
    "PRelu": (1,),
    "LayerNormalization": (1, 2),
}
"""Operator -> its inputs that a builder takes as they come, whatever their values."""


class WeightsOrder(Frozen):
    """Which weights to write down: those of `after` that differ, and these others."""

    before: Path
    after: Path
    dest: Path
    others: tuple[str, ...] = ()


class WeightNames(Frozen):
    names: tuple[str, ...]


def digest(path: str) -> str:
    """sha256 of the skeleton of the graph in a file, its external data included."""
    from onnx import TensorProto

    model = onnx_files.read(Path(path))
    for tensor in _free(model).values():
        bare = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        tensor.CopyFrom(bare)
    return sha256_bytes(model.SerializeToString(deterministic=True))


def write_weights(request: str) -> str:
    """A WeightsOrder in, WeightNames out, both as JSON; the weights are left in `dest`.

    Raises: BuildError for other weights that the graph does not have.
    """
    from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType]

    order = WeightsOrder.model_validate_json(request)
    before, after = (_arrays(onnx_files.read(path)) for path in (order.before, order.after))
    unknown = sorted(set(order.others) - after.keys())
    if unknown:
        raise BuildError(
            f"refit: TensorRT also needs weight {unknown[0]!r}",
            why="a refit cannot set a weight of that name in the graph",
        )
    names = sorted(
        name
        for name, values in after.items()
        if name in order.others or values.tobytes() != before[name].tobytes()
    )
    if not names:
        raise BuildError("refit: every weight is equal to that of the existing plan")
    save_file({name: after[name] for name in names}, order.dest)
    return WeightNames(names=tuple(names)).model_dump_json()


def _arrays(model: ModelProto) -> dict[str, Any]:
    from onnx import numpy_helper

    return {name: numpy_helper.to_array(tensor) for name, tensor in _free(model).items()}


def _free(model: ModelProto) -> dict[str, TensorProto]:
    """The weights whose values are not part of the skeleton, by name."""
    from onnx import TensorProto

    main = model.graph
    used: Counter[str] = Counter()
    for graph in walk.graphs(main):
        used.update(name for node in graph.node for name in node.input)
        used.update(value.name for value in (*graph.input, *graph.output))
    kept = Counter(
        node.input[index]
        for node in main.node
        if node.domain in ("", "ai.onnx")
        for index in KEPT_AS_TENSORS.get(node.op_type, ())
        if index < len(node.input)
    )
    return {
        tensor.name: tensor
        for tensor in main.initializer
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16)
        and 0 < used[tensor.name] == kept[tensor.name]
    }
