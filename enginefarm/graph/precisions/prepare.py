"""What is done to the FP32 graph before any precision's own work, the same for all of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from enginefarm.errors import PrecisionError
from enginefarm.graph import onnx_files
from enginefarm.graph.precisions import batch_norm, constants, outer
from enginefarm.graph.precisions.free_names import name_nodes, unique_values
from enginefarm.graph.precisions.graph import at_opset

if TYPE_CHECKING:
    from onnx import ModelProto

LEAST_OPSET = 13
"""Older ones keep axes and bounds in attributes, and their Max takes no broadcast."""


def fp32(src: Path, name: str, opset: int = LEAST_OPSET) -> ModelProto:
    """The graph at `src` in FP32 whatever it was, its functions inlined, its constants as
    initializers, with one name for each node and each value in the whole model.

    Raises: PrecisionError.
    """
    model = onnx_files.read(src, error=PrecisionError)
    model = at_opset(model, opset, name)
    constants.to_initializers(model)
    unique_values(model)
    name_nodes(model)
    constants.widen(model)
    batch_norm.fold(model)
    outer.as_mul(model)
    return model
