"""Records which branches of a graph's Ifs the data took: a branch that never ran is not
verified."""

from __future__ import annotations

from typing import TYPE_CHECKING

from enginefarm.graph.model import walk

if TYPE_CHECKING:
    from onnx import ModelProto

    from enginefarm.graph.model.arrays import Arrays


class BranchProbe:
    """Adds the conditions of the main graph's Ifs to its outputs, and records their values.

    Ifs inside other bodies are reported as unknown, because their conditions cannot be read from
    outside.
    """

    def __init__(self, model: ModelProto) -> None:
        from onnx import TensorProto, helper

        graph = model.graph
        self._seen: dict[str, set[bool]] = {}
        self._nodes = [
            (walk.label(node), node.input[0]) for node in graph.node if node.op_type == "If"
        ]
        self._inner = [
            walk.label(node)
            for outer in graph.node
            for body in walk.bodies(outer)
            for node in walk.nodes(body)
            if node.op_type == "If"
        ]
        have = {output.name for output in graph.output}
        self._added = {name for _, name in self._nodes} - have
        for name in sorted(self._added):
            graph.output.append(helper.make_tensor_value_info(name, TensorProto.BOOL, None))

    def note(self, outputs: Arrays) -> Arrays:
        """Records the conditions among one run's outputs, and returns the other outputs."""
        for _, name in self._nodes:
            self._seen.setdefault(name, set()).add(bool(outputs[name].all()))
        return {name: array for name, array in outputs.items() if name not in self._added}

    def not_run(self) -> list[str]:
        """One line for each branch that no batch took."""
        lines = [
            f"the {branch} branch of {node!r} (If): no data took it"
            for node, name in self._nodes
            for branch, value in (("then", True), ("else", False))
            if value not in self._seen.get(name, set())
        ]
        return lines + [
            f"both branches of {node!r} (If inside another body): which ran is not known"
            for node in self._inner
        ]
