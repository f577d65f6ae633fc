"""Nodes that stay in FP32 because of what they compute, found in the FP32 graph.

Each rule is a function from the graph to names of nodes; RULES lists them with the reason that
people are given.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from enginefarm.graph.model import walk
from enginefarm.graph.model.emulate import EXACT
from enginefarm.graph.model.operators import MOVES

PASSES = MOVES | {"Cast", "Concat", "Where"}
ARITHMETIC = frozenset(
    (
        *("Abs", "Add", "Ceil", "Clip", "CumSum", "Div", "Exp", "Floor", "Log", "Max", "Min"),
        *("Mod", "Mul", "Neg", "Pow", "Range", "Reciprocal", "Round", "Sqrt", "Sub"),
    )
)
MEANS = frozenset(("GlobalAveragePool", "ReduceMean", "ReduceSum"))
NORMS = MEANS | frozenset(("ReduceL2", "ReduceSumSquare"))
MAX_STEPS = 8
"""How many nodes may stand between a mean and the root: an epsilon, a bound, reshapes."""


class Links:
    """Who makes a value, who reads it, and its dtype. Values have one name in the whole model,
    whose dtypes have been inferred."""

    def __init__(self, model: ModelProto) -> None:
        graphs = list(walk.graphs(model.graph))
        self.types: dict[str, int] = {
            value.name: value.type.tensor_type.elem_type
            for graph in graphs
            for value in (*graph.value_info, *graph.input, *graph.output)
        }
        self.nodes: list[NodeProto] = list(walk.nodes(model.graph))
        self.constants: dict[str, TensorProto] = dict(walk.constants(model.graph))
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


def normalizations(links: Links) -> Iterator[NodeProto]:
    """Squares behind a mean, and layer and RMS normalizations written out: from what is squared
    over the mean and the root to the product with the root, and the difference from the mean."""
    for node in links.nodes:
        if node.op_type in NORMS and (square := _square_below(links, node)) is not None:
            yield from (node, square, *_difference_below(links, square))
        if _is_root(links, node):
            cone = _cone(links, node, MAX_STEPS)
            yield from cone
            if cone:
                yield from _applied(links, node)
                for inner in cone:
                    if inner.op_type in MEANS:
                        yield from _taken_away(links, inner, MAX_STEPS)


def _cone(links: Links, node: NodeProto, steps: int) -> list[NodeProto]:
    """The node and all between it and the means below it; empty where no way ends in one."""
    if node.op_type in NORMS:
        square = _square_below(links, node)
        return [node] if square is None else [node, square, *_difference_below(links, square)]
    if steps == 0:
        return []
    found = [
        inner
        for maker in links.computed(node)
        if maker.op_type in ARITHMETIC | PASSES | NORMS
        for inner in _cone(links, maker, steps - 1)
    ]
    return [node, *found] if found else []


def _square_below(links: Links, mean: NodeProto) -> NodeProto | None:
    """The square whose mean or sum this is."""
    if mean.op_type in ("ReduceL2", "ReduceSumSquare"):
        return mean
    square = links.maker.get(mean.input[0])
    return square if square is not None and _is_square(links, square) else None


def _difference_below(links: Links, square: NodeProto) -> list[NodeProto]:
    """The difference from a mean that is squared, and what makes the mean."""
    difference = links.maker.get(square.input[0])
    if difference is None or difference.op_type != "Sub":
        return []
    means = [inner for maker in links.computed(difference) for inner in _cone(links, maker, 2)]
    return [difference, *means] if means else []


def _applied(links: Links, root: NodeProto) -> Iterator[NodeProto]:
    """From the root to the product or quotient with what it normalizes."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        for reader in (r for name in node.output for r in links.readers[name]):
            variable = [name for name in reader.input if name not in links.constants]
            if reader.op_type in ("Div", "Mul"):
                yield reader
                if len(variable) == 1:  # by a constant: the root is not applied yet
                    waiting.append(reader)
            elif reader.op_type in PASSES or (
                reader.op_type in ("Add", "Clip", "Max", "Reciprocal") and len(variable) == 1
            ):
                yield reader
                waiting.append(reader)


def _taken_away(links: Links, mean: NodeProto, steps: int) -> Iterator[NodeProto]:
    """From a mean to the difference from it: what is close to the mean would lose all its bits."""
    if steps == 0:
        return
    for reader in (r for name in mean.output for r in links.readers[name]):
        if reader.op_type == "Sub":
            yield reader
        elif reader.op_type in PASSES or (
            reader.op_type in ("Div", "Mul") and not links.constants.keys().isdisjoint(reader.input)
        ):
            yield reader
            yield from _taken_away(links, reader, steps - 1)


def _is_square(links: Links, node: NodeProto) -> bool:
    if node.op_type == "Mul":
        return len(node.input) == 2 and node.input[0] == node.input[1]
    return node.op_type == "Pow" and _scalar(links, node.input[1]) == 2.0


def _scalar(links: Links, name: str) -> float | None:
    tensor = links.constants.get(name)
    if tensor is None:
        return None
    values = numpy_helper.to_array(tensor)
    return float(values.reshape(-1)[0]) if values.size == 1 else None


def _is_root(links: Links, node: NodeProto) -> bool:
    if node.op_type == "Sqrt":
        return True
    return node.op_type == "Pow" and _scalar(links, node.input[1]) in (0.5, -0.5)


def angles(links: Links) -> Iterator[NodeProto]:
    """Sin, Cos and Mod, and the arithmetic that makes their angle: 16 bits of 3,000 radians are off
    by a radian, and Mod jumps where an angle is whole. Products of matrices are left alone: there
    is no FP32 one on every GPU."""
    waiting = [
        node
        for node in links.nodes
        if node.op_type in ("Cos", "Mod", "Sin")
        and links.types.get(node.output[0]) == TensorProto.FLOAT
    ]
    seen: set[str] = set()
    while waiting:
        node = waiting.pop()
        if node.name in seen:
            continue
        seen.add(node.name)
        yield node
        waiting += [n for n in links.computed(node) if n.op_type in ARITHMETIC | PASSES]


def integers(links: Links) -> Iterator[NodeProto]:
    """Arithmetic on integers that were cast to floats, and on nothing else: positions, lengths,
    counts. Above 2,048 they are no longer all different in FP16, and above 256 in BF16."""
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
            computes = node.op_type in ARITHMETIC | PASSES
            from_integers = computes and bool(floats) and exact.issuperset(floats)
            if from_integers:
                yield node
        if from_integers or node.op_type == "Range":
            exact.update(node.output)


def log_spectra(links: Links) -> Iterator[NodeProto]:
    """From an input of the model through filters to the logarithm of their power: CQT, STFT, mel.
    Rounding what is loud puts a floor under what is quiet, and a logarithm shows the floor.
    Products of matrices are left alone, as for angles; a model with a nonlinearity before its
    logarithm (the end of a classifier, say) has no spectrum there."""
    for node in links.nodes:
        if node.op_type != "Log":
            continue
        cone = _linear_cone(links, node)
        powers = ("Sqrt", "Abs", "ReduceL2", "ReduceSumSquare")
        power = any(n.op_type in powers or _is_square(links, n) for n in cone)
        if power and any(n.op_type in FILTERS - {"Pad"} for n in cone):
            yield from (n for n in cone if n.op_type not in MATRIX_PRODUCTS)


def _linear_cone(links: Links, node: NodeProto) -> list[NodeProto]:
    """All that a value is computed from; empty where some of it is neither a filter nor
    arithmetic."""
    waiting, seen = [node], {node.name: node}
    while waiting:
        for maker in links.computed(waiting.pop()):
            if maker.op_type not in ARITHMETIC | PASSES | NORMS | FILTERS | SIZES:
                return []
            if maker.name not in seen:
                seen[maker.name] = maker
                waiting.append(maker)
    return [n for n in seen.values() if n.op_type not in SIZES]


MATRIX_PRODUCTS = frozenset(("Gemm", "MatMul"))
FILTERS = MATRIX_PRODUCTS | {"Conv", "Pad"}
SIZES = frozenset(("Constant", "ConstantOfShape", "Shape", "Size"))
LARGE_INTEGERS = ("INT16", "INT32", "INT64", "UINT16", "UINT32", "UINT64")

RULES = (
    Rule("it is part of a normalization", normalizations),
    Rule("it computes an angle of Sin, Cos or Mod", angles),
    Rule("it computes with integers", integers),
    Rule("it computes a spectrum whose logarithm is taken", log_spectra),
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


def movers(
    model: ModelProto, is_wide: Callable[[NodeProto], bool], types: Mapping[str, int]
) -> set[str]:
    """Names of nodes that only move FP32 numbers, some of which an FP32 node reads: in 16 bits they
    would round what both ends keep, as a Relu between two convolutions that are kept wide.

    is_wide: whether a node computes in FP32. types: dtype of each value in the FP32 graph, which
    has one name for each value. All float inputs except constants must be inputs of the model or
    results in FP32. Nodes that read the result in 16 bits read it through a Cast.
    """
    links = Links(model)
    wide = {node.name for node in links.nodes if not walk.bodies(node) and is_wide(node)}
    given = {value.name for value in model.graph.input} - links.constants.keys()
    found: dict[str, NodeProto] = {}
    fp32 = given | {name for n in links.nodes if n.name in wide for name in n.output}

    def moves_fp32(node: NodeProto) -> bool:
        floats = [
            name
            for name in node.input
            if types.get(name) == TensorProto.FLOAT and name not in links.constants
        ]
        return bool(floats) and fp32.issuperset(floats)

    for node in links.nodes:  # makers come before readers
        exact = node.op_type in EXACT and node.name not in wide and not walk.bodies(node)
        if exact and moves_fp32(node):
            found[node.name] = node
            fp32.update(node.output)
    wanted: set[str] = set()
    for node in reversed(found.values()):
        readers = (reader.name for name in node.output for reader in links.readers[name])
        if any(reader in wide or reader in wanted for reader in readers):
            wanted.add(node.name)
    return wanted
