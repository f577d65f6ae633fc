"""Bounds of the integers and booleans that a graph computes from its sizes.

Each value has the smallest and the largest number that it can be, element by element, at any size
that the recipe's profiles allow. ONNX's shape inference says which dims are fixed and which are a
named dim of the recipe; any other dim can have any size. `onnx.reference` computes the bounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from onnx import NodeProto

from enginefarm.graph.model.arrays import Array
from enginefarm.graph.model.walk import bodies

LARGEST = 1 << 31
"""No size is larger. Larger sums and products of sizes are clipped to this."""
MOST_ELEMENTS = 1 << 10
"""Tensors of sizes are short; longer ones are data."""

Dims = tuple[int | str | None, ...]


@dataclass(frozen=True)
class Bounds:
    """low and high: two arrays of the value's own shape."""

    low: Array
    high: Array

    @property
    def exact(self) -> bool:
        return bool((self.low == self.high).all())


SAME = "="
SIGNS: dict[str, str] = {
    **dict.fromkeys(("Add", "Mul", "Min", "Max", "And", "Or", "Concat", "Sum"), "+"),
    **dict.fromkeys(("Identity", "Cast", "Floor", "Ceil", "Transpose", "Flatten"), "+"),
    **dict.fromkeys(("Gather", "Slice", "Squeeze", "Unsqueeze", "Reshape", "Expand"), "+="),
    **dict.fromkeys(("ReduceSum", "ReduceMin", "ReduceMax", "Tile"), "+="),
    **dict.fromkeys(("Greater", "GreaterOrEqual", "Sub", "Div"), "+-"),
    **dict.fromkeys(("Less", "LessOrEqual"), "-+"),
    "Not": "-",
}
"""How a result depends on each input: it grows with it (+), shrinks (-), or the input must be known
(=). The last sign is for all further inputs."""
FROM_ZERO = frozenset(("Mul", "Div", "Cast"))
"""They grow with their first input only if nothing is below 0."""


def of_array(array: Array) -> Bounds | None:
    """The bounds of a constant; None for a long one or one that is not numbers."""
    if array.size > MOST_ELEMENTS or array.dtype.kind not in "iufb":
        return None
    return Bounds(array, array)


def of_shape(dims: Dims, named: Mapping[str, tuple[int, int]], start: int, end: int) -> Bounds:
    """The result of Shape. named: the smallest and the largest size of each dim of the recipe."""
    both = [_bounds(dim, named) for dim in dims[start:end]]
    made = np.array(both, np.int64).reshape(-1, 2)
    return Bounds(made[:, 0], made[:, 1])


def of_size(dims: Dims, named: Mapping[str, tuple[int, int]]) -> Bounds:
    """The result of Size: the product of all dims."""
    low = high = 1
    for least, most in (_bounds(dim, named) for dim in dims):
        low, high = min(low * least, LARGEST), min(high * most, LARGEST)
    return Bounds(np.array(low, np.int64), np.array(high, np.int64))


def _bounds(dim: int | str | None, named: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    if isinstance(dim, int):
        return dim, dim
    return named.get(dim, (0, LARGEST)) if dim is not None else (0, LARGEST)


def of_node(node: NodeProto, inputs: Sequence[Bounds | None], opset: int) -> Bounds | None:
    """The bounds of a node's result, computed from those of its inputs; None if they are unknown.

    inputs: None for an unknown value, and for an optional input that the node omits.
    """
    known: list[Bounds] = []
    for name, value in zip(node.input, inputs, strict=True):
        if name and value is None:
            return None
        if value is not None:
            known.append(value)
    if len(node.output) != 1 or bodies(node):
        return None
    if all(value.exact for value in known):
        made = computed(node, [value.low for value in known], opset)
        return None if made is None else of_array(made)
    if node.op_type == "Equal":
        return _equal(*known)
    return _monotone(node, known, opset)


def _equal(one: Bounds, other: Bounds) -> Bounds:
    always = (one.low == one.high) & (one.low == other.high) & (one.high == other.low)
    never = (one.high < other.low) | (one.low > other.high)
    return Bounds(always, ~never)


def _monotone(node: NodeProto, known: Sequence[Bounds], opset: int) -> Bounds | None:
    signs = SIGNS.get(node.op_type)
    if signs is None:
        return None
    given = [*signs, *(signs[-1] for _ in known)][: len(known)]
    if any(sign == SAME and not value.exact for sign, value in zip(given, known, strict=True)):
        return None
    if node.op_type in FROM_ZERO and any((value.low < 0).any() for value in known):
        return None
    numbers = [value for value in known if value.low.dtype.kind in "iuf"]
    if any(value.exact and (abs(value.low) > LARGEST).any() for value in numbers):
        return None
    if node.op_type == "Div" and (known[1].low <= 0).any():
        return None
    low = [v.high if sign == "-" else v.low for sign, v in zip(given, known, strict=True)]
    high = [v.low if sign == "-" else v.high for sign, v in zip(given, known, strict=True)]
    least, most = computed(node, low, opset), computed(node, high, opset)
    if least is None or most is None:
        return None
    if most.dtype.kind in "iuf":
        least, most = np.clip(least, -LARGEST, LARGEST), np.clip(most, -LARGEST, LARGEST)
    return Bounds(least, most)


def computed(node: NodeProto, inputs: Sequence[Array], opset: int) -> Array | None:
    """The node's result from `onnx.reference`; None if it cannot compute it.

    inputs: without those that the node omits."""
    reference: Any = import_module("onnx.reference")
    names = [name for name in node.input if name]
    feeds = dict(zip(names, inputs, strict=True))
    try:
        made = reference.ReferenceEvaluator(node, opsets={"": opset}).run(None, feeds)
    except Exception:  # it has exceptions of many kinds; the result is then unknown
        return None
    return np.asarray(made[0])
