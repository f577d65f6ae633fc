"""Nodes that stay in FP32 because of what they compute, found in the FP32 graph.

Each rule is a function from the graph to names of nodes; RULES lists them with the reason that
people are given.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from enginefarm.graph import onnx_files

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

MOVES = frozenset(
    [
        "Cast",
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Where",
    ]
)
ARITHMETIC = frozenset(
    [
        "Abs",
        "Add",
        "Ceil",
        "Clip",
        "CumSum",
        "Div",
        "Exp",
        "Floor",
        "Log",
        "Max",
        "Min",
        "Mod",
        "Mul",
        "Neg",
        "Pow",
        "Range",
        "Reciprocal",
        "Round",
        "Sqrt",
        "Sub",
    ]
)
MEANS = frozenset(("GlobalAveragePool", "ReduceMean", "ReduceSum"))
NORMS = MEANS | frozenset(("ReduceL2", "ReduceSumSquare"))
MAX_STEPS = 4
"""How many nodes may stand between the sum of squares and its root: an epsilon, a bound, a
reshape or two."""


class Links:
    """Who makes a value, who reads it, and its dtype. Values have one name in the whole model,
    whose dtypes have been inferred."""

    def __init__(self, model: ModelProto) -> None:
        graphs = list(onnx_files.graphs(model.graph))
        self.types: dict[str, int] = {
            value.name: value.type.tensor_type.elem_type
            for graph in graphs
            for value in (*graph.value_info, *graph.input, *graph.output)
        }
        self.nodes: list[NodeProto] = [node for graph in graphs for node in graph.node]
        self.constants: dict[str, TensorProto] = {
            tensor.name: tensor for graph in graphs for tensor in graph.initializer
        }
        self.maker: dict[str, NodeProto] = {}
        self.readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.nodes:
            self.maker.update((name, node) for name in node.output if name)
            for name in dict.fromkeys(node.input):
                self.readers[name].append(node)

    def computed(self, node: NodeProto) -> list[NodeProto]:
        """The nodes that make the node's inputs; constants and inputs of the model have none."""
        return [self.maker[name] for name in node.input if name in self.maker]


@dataclass(frozen=True)
class Rule:
    reason: str
    find: Callable[[Links], Iterator[NodeProto]]


def normalisations(links: Links) -> Iterator[NodeProto]:
    """Layer and RMS normalisations written out: the squares behind a mean, what they are squares
    of, the root, and the division by it."""
    for node in links.nodes:
        if node.op_type in NORMS:
            yield from _squares(links, node)
        if _is_root(links, node):
            chain = _down_to_the_mean(links, node)
            if chain:
                yield from chain
                yield node
                yield from _divisions(links, node)


def _squares(links: Links, mean: NodeProto) -> Iterator[NodeProto]:
    """The square whose mean or sum this is, and the difference from a mean that it squares."""
    square = links.maker.get(mean.input[0])
    if mean.op_type in ("ReduceL2", "ReduceSumSquare"):
        square = mean
    elif square is None or not _is_square(links, square):
        return
    yield mean
    yield square
    inner = links.maker.get(square.input[0])
    if inner is not None and inner.op_type == "Sub":
        means = [node for node in links.computed(inner) if node.op_type in MEANS]
        if means:
            yield inner
            yield from means


def _is_square(links: Links, node: NodeProto) -> bool:
    if node.op_type == "Mul":
        return len(node.input) == 2 and node.input[0] == node.input[1]
    return node.op_type == "Pow" and _scalar(links, node.input[1]) == 2.0


def _scalar(links: Links, name: str) -> float | None:
    from onnx import numpy_helper

    tensor = links.constants.get(name)
    if tensor is None:
        return None
    values = numpy_helper.to_array(tensor)
    return float(values.reshape(-1)[0]) if values.size == 1 else None


def _is_root(links: Links, node: NodeProto) -> bool:
    if node.op_type == "Sqrt":
        return True
    return node.op_type == "Pow" and _scalar(links, node.input[1]) in (0.5, -0.5)


def _down_to_the_mean(links: Links, root: NodeProto) -> list[NodeProto]:
    """From the root to the mean of squares below it; empty where there is none."""
    passed: list[NodeProto] = []
    node = links.maker.get(root.input[0])
    while node is not None and len(passed) <= MAX_STEPS:
        passed.append(node)
        if node.op_type in NORMS:
            found = list(_squares(links, node))
            return [*passed, *found] if found else []
        if node.op_type not in ARITHMETIC | MOVES:
            return []
        made = [name for name in node.input if name in links.maker]
        node = links.maker[made[0]] if len(made) == 1 else None
    return []


def _divisions(links: Links, root: NodeProto) -> Iterator[NodeProto]:
    for reader in (node for name in root.output for node in links.readers[name]):
        if reader.op_type in ("Div", "Mul", "Reciprocal", "Max", "Add", "Clip", "Expand"):
            yield reader
            if reader.op_type in ("Div", "Mul"):
                continue
            for name in reader.output:
                yield from (n for n in links.readers[name] if n.op_type in ("Div", "Mul"))


def angles(links: Links) -> Iterator[NodeProto]:
    """Sin and Cos, and the arithmetic that makes their angle: 16 bits of 3,000 radians are off by
    a radian. Products of matrices are left alone: there is no FP32 one on every GPU."""
    waiting = [node for node in links.nodes if node.op_type in ("Cos", "Sin")]
    seen: set[str] = set()
    while waiting:
        node = waiting.pop()
        if node.name in seen:
            continue
        seen.add(node.name)
        yield node
        waiting += [n for n in links.computed(node) if n.op_type in ARITHMETIC | MOVES]


def integers(links: Links) -> Iterator[NodeProto]:
    """Arithmetic on integers that were cast to floats, and on nothing else: positions, lengths,
    counts. Above 2,048 they are no longer all different in FP16, and above 256 in BF16."""
    from onnx import TensorProto

    large = {TensorProto.DataType.Value(name) for name in LARGE_INTEGERS}
    exact: set[str] = set()
    for node in links.nodes:
        floats = [
            name
            for name in node.input
            if links.types.get(name) == TensorProto.FLOAT and name not in links.constants
        ]
        if node.op_type == "Cast":
            from_integers = links.types.get(node.input[0]) in large
        else:
            computes = node.op_type in ARITHMETIC | MOVES
            from_integers = computes and bool(floats) and exact.issuperset(floats)
            if from_integers:
                yield node
        if from_integers or node.op_type == "Range":
            exact.update(node.output)


LARGE_INTEGERS = ("INT16", "INT32", "INT64", "UINT16", "UINT32", "UINT64")

RULES = (
    Rule("it is part of a normalisation", normalisations),
    Rule("it computes an angle of Sin or Cos", angles),
    Rule("it computes with integers", integers),
)


def find(model: ModelProto) -> dict[str, str]:
    """Name of each node that a rule keeps in FP32 -> the reason.

    model: FP32, of `prepare.fp32`, with the dtypes of its values.
    """
    links = Links(model)
    found: dict[str, str] = {}
    for rule in RULES:
        for node in rule.find(links):
            found.setdefault(node.name, rule.reason)
    return found
