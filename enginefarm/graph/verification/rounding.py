"""What FP32 rounding alone costs a graph: the same function in FP32, computed in another way.

Every FP32 engine adds in a different order, so none returns the reference's numbers to the
last bit. How far apart two sound ones are is a property of the model: 1e-7 for most of them,
2e-4 where the model takes the logarithm of small numbers (docs/decisions/0260).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from enginefarm.errors import PrecisionError
from enginefarm.graph.model import operators, ort, walk
from enginefarm.graph.model.edit import copied

if TYPE_CHECKING:
    from onnx import ModelProto

    from enginefarm.graph.model.arrays import Array, Arrays
    from enginefarm.graph.verification.reference import ReferenceBatch


PRODUCTS = operators.MATRIX_PRODUCTS | {"Conv", "ConvTranspose"}
SEED = 20


def second_run(model: ModelProto) -> Callable[[ReferenceBatch], Arrays] | None:
    """A function that runs the graph with ONNX Runtime's optimizations, which sum in another order,
    and with the weights of products and the inputs moved to a neighboring FP32 number.

    None for graphs that are too large to be in memory once more (`walk.is_small`). There, and
    where that graph does not load or run, nothing is measured, and rounding excuses nothing.
    """
    if not walk.is_small(model):
        return None
    try:
        session = ort.session_of(_moved(model), error=PrecisionError, what="rounding")
    except PrecisionError:
        return None

    def run(batch: ReferenceBatch) -> Arrays:
        inputs = {name: neighbors(array) for name, array in batch.inputs.items()}
        try:
            return ort.run(session, inputs, error=PrecisionError, what="rounding")
        except PrecisionError:
            return {}

    return run


def _moved(model: ModelProto) -> ModelProto:
    """A copy in which each weight of a product is moved to one of its neighbors."""
    from onnx import TensorProto, numpy_helper

    made: ModelProto = copied(model)
    read = {
        name for node in walk.nodes(made.graph) if node.op_type in PRODUCTS for name in node.input
    }
    for graph in walk.graphs(made.graph):
        for tensor in graph.initializer:
            if tensor.name in read and tensor.data_type == TensorProto.FLOAT:
                values = neighbors(numpy_helper.to_array(tensor))
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return made


def neighbors(values: Array) -> Array:
    """FP32 numbers moved by one step up or down, at random, always the same way.

    Whole numbers stay, and zeros: sizes, tokens, masks and pixels are exact.
    """
    import numpy as np

    if values.dtype != np.float32:
        return values
    random: Any = np.random.default_rng(SEED)
    up: Array = random.random(values.shape) < 0.5
    moved = np.nextafter(values, np.where(up, np.float32(np.inf), np.float32(-np.inf)))
    whole = (values == np.rint(values)) | ~np.isfinite(values)
    return np.where(whole, values, moved).astype(np.float32)
