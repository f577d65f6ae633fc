"""AffineGrid as products and sums, which every toolchain has.

ONNX's own definition of it is of no use: it drops a batch of one, too.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import GraphProto, ModelProto, NodeProto, helper

from enginefarm.graph.model import onnx_shapes, walk
from enginefarm.graph.model.edit import FreeNames, rewrite

OPERATOR = "AffineGrid"


def write_out(model: ModelProto) -> bool:
    """In place. Returns whether there was one whose number of dims is known."""
    rows = _rows(model)
    if not rows:
        return False
    free = FreeNames(model)

    def written(node: NodeProto, _: GraphProto) -> list[NodeProto] | None:
        count = rows.get(node.input[0]) if node.op_type == OPERATOR else None
        return None if count is None else _Written(node, count, free).nodes

    return rewrite(model, written)


def _rows(model: ModelProto) -> dict[str, int]:
    """The name of each theta [N, rows, rows + 1] -> rows, which are 2 or 3."""
    try:
        light = onnx.shape_inference.infer_shapes(onnx_shapes.without_weights(model))
    except Exception:  # it crashes on what it does not know
        return {}
    shapes = onnx_shapes.known_shapes(walk.graphs(light.graph))
    found: dict[str, int] = {}
    for node in walk.nodes(light.graph):
        shape = shapes.get(node.input[0], []) if node.op_type == OPERATOR else []
        if len(shape) == 3 and shape[1] in (2, 3):
            found[node.input[0]] = int(str(shape[1]))
    return found


class _Written:
    """grid[n, …, i] is the sum over the axes of theta[n, i, axis] · place[axis], and of theta's
    last column; the first place is that of the last axis, the width."""

    def __init__(self, node: NodeProto, rows: int, free: FreeNames) -> None:
        self.nodes: list[NodeProto] = []
        self._base, self._free = node.name or node.output[0], free
        theta, size = node.input[:2]
        aligned = walk.value(node, "align_corners", 0) == 1
        total = self._axes(self._column(theta, rows), [2 + one for one in range(rows - 1)])
        for axis in range(rows):
            places = self._places(size, 1 + rows - axis, aligned)
            term = self._make(
                "Mul", self._column(theta, axis), self._make("CastLike", places, theta)
            )
            others = [2 + one for one in range(rows) if one != rows - 1 - axis]
            total = self._make("Add", total, self._axes(term, others))
        self._make("Transpose", total, perm=[0, *range(2, 2 + rows), 1])
        self.nodes[-1].output[0] = node.output[0]

    def _places(self, size: str, axis: int, aligned: bool) -> str:
        """The centers of the pixels of an axis from -1 to 1, or the pixels that end there."""
        count = self._make("Cast", self._make("Gather", size, self._whole([axis])), to=1)
        scalar = self._make("Squeeze", count, self._whole([0]))
        steps = self._make("Range", self._number(0), scalar, self._number(1))
        twice = self._make("Mul", steps, self._number(2))
        if aligned:
            most = self._make("Sub", count, self._number(1))
            parts = self._make("Div", twice, self._make("Max", most, self._number(1)))
        else:
            parts = self._make("Div", self._make("Add", twice, self._number(1)), count)
        return self._make("Sub", parts, self._number(1))

    def _column(self, theta: str, index: int) -> str:
        bounds = (self._whole([one]) for one in (index, index + 1, 2))
        return self._make("Slice", theta, *bounds)

    def _axes(self, value: str, axes: list[int]) -> str:
        return self._make("Unsqueeze", value, self._whole(axes)) if axes else value

    def _whole(self, values: list[int]) -> str:
        return self._make("Constant", value_ints=values)

    def _number(self, value: float) -> str:
        return self._make("Constant", value_float=float(value))

    def _make(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = self._free.make(f"{self._base}_{operator.lower()}")
        self.nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name
