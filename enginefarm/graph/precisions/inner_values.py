"""A graph that also returns chosen inner values, including those in the branches of an If."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from enginefarm.graph.model.edit import copied
from enginefarm.graph.model.free_names import FreeNames
from enginefarm.graph.model.walk import bodies

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto


def exposed(model: ModelProto, names: Sequence[str]) -> tuple[ModelProto, dict[str, str]]:
    """A copy whose outputs are these values alone, and the name of each there.

    A value of a branch that did not run is empty. Inputs of the model are left out.
    """
    from onnx import TensorProto, helper

    made: ModelProto = copied(model)
    inputs = {value.name for value in made.graph.input}
    wanted = [name for name in names if name not in inputs]
    renamed = _through_branches(made.graph, set(wanted), FreeNames(made))
    found = {name: renamed.get(name, name) for name in wanted}
    if not found:  # a graph needs an output
        return made, found
    del made.graph.output[:]
    made.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in dict.fromkeys(found.values())
    )
    return made, found


def _through_branches(graph: GraphProto, wanted: set[str], free: FreeNames) -> dict[str, str]:
    """Passes wanted values of branches out of their If; returns their names in this graph."""
    from onnx import TensorProto, helper

    renamed: dict[str, str] = {}
    for node in graph.node:
        if node.op_type != "If":
            continue
        branches = bodies(node)
        own = [_through_branches(branch, wanted, free) for branch in branches]
        for branch, deeper in zip(branches, own, strict=True):
            made_here = {name for inner in branch.node for name in inner.output}
            deeper.update((name, name) for name in sorted(wanted & made_here))
        for branch, values in zip(branches, own, strict=True):
            for name, inner in values.items():
                renamed[name] = free.make(f"{name}_seen")
                node.output.append(renamed[name])
                for other in branches:
                    shown = inner
                    if other is not branch:
                        shown = free.make(f"{name}_not_run")
                        other.initializer.append(
                            helper.make_tensor(shown, TensorProto.FLOAT, [0], [])
                        )
                    other.output.append(
                        helper.make_tensor_value_info(shown, TensorProto.FLOAT, None)
                    )
    return renamed
