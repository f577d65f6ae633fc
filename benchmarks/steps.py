"""A graph run node by node, for a second opinion on the graphs that are published.

Each node is an ONNX Runtime session of its own, in FP32 and with every optimization off, and
numpy rounds each result that the graph stores in 16 bits. The product's verification rewrites
the whole graph and lets ONNX Runtime round: nothing of that is used here.

It sees what is stored between nodes, in the bodies of If, Loop and Scan too: overflow, rounding,
casts, shapes. It does not see what happens inside a node (the steps of an LSTM), nor what a builder
makes of the graph: that takes the GPU. Both ways share ONNX Runtime's FP32 kernels.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

onnx: Any = import_module("onnx")  # typed in part
runtime: Any = import_module("onnxruntime")

Arrays = dict[str, np.ndarray[Any, Any]]
LOWS: dict[int, Any] = {
    onnx.TensorProto.FLOAT16: np.float16,
    onnx.TensorProto.BFLOAT16: ml_dtypes.bfloat16,
}
"""Results of these are rounded to them, and kept as FP32."""
EIGHTS: dict[int, Any] = {
    onnx.TensorProto.FLOAT8E4M3FN: ml_dtypes.float8_e4m3fn,
    onnx.TensorProto.FLOAT8E5M2: ml_dtypes.float8_e5m2,
}
FOURS: dict[int, tuple[int, int]] = {
    onnx.TensorProto.INT4: (-8, 7),
    onnx.TensorProto.UINT4: (0, 15),
}
"""The least and the largest number of each."""
SMALL = frozenset((*EIGHTS, *FOURS))
"""What ONNX Runtime's CPU provider cannot quantize to. Kept as FP32, as LOWS are."""
FLOAT = onnx.TensorProto.FLOAT
NARROW = frozenset(
    (*(np.dtype(one).name for one in (*LOWS.values(), *EIGHTS.values())), "int4", "uint4")
)
DTYPES = ("to", "dtype", "output_dtype", "softmax_precision")


class NotRun(Exception):
    """A graph that cannot be run this way; the words say why."""


class Steps:
    """One graph. rounded=False: as FP32 computes it, whatever its dtypes."""

    def __init__(self, path: Path, *, rounded: bool = True) -> None:
        model = onnx.load(os.fspath(path))
        if model.functions:
            model = import_module("onnx.inliner").inline_local_functions(model)
        self.model = onnx.shape_inference.infer_shapes(model)
        self.rounded = rounded
        self.sessions: dict[str, Any] = {}
        """Of each node, by its place in the graph."""

    def run(self, inputs: Mapping[str, Any]) -> Arrays:
        """Outputs by name, rounded to the types that they have. Raises: NotRun."""
        values = {name: _wide(np.asarray(array)) for name, array in inputs.items()}
        types = {value.name: _type(value) for value in self.model.graph.input}
        for name, dtype in types.items():
            if name in values and dtype in LOWS:
                values[name] = _rounded(values[name], dtype)
        made = self._graph(self.model.graph, values, types, "")
        for value in self.model.graph.output:
            if _type(value) in LOWS:
                made[value.name] = _rounded(made[value.name], _type(value))
        return made

    def _graph(self, graph: Any, values: Arrays, types: dict[str, int], where: str) -> Arrays:
        for tensor in graph.initializer:
            values[tensor.name] = _wide(onnx.numpy_helper.to_array(tensor))
            types[tensor.name] = tensor.data_type
        for value in (*graph.value_info, *graph.output):
            types[value.name] = _type(value)
        last = _last_uses(graph)
        for index, node in enumerate(graph.node):
            made = self._node(node, values, types, f"{where}/{index}")
            for name, array in zip(node.output, made, strict=True):
                if name:
                    values[name] = array
            for name in last.get(index, ()):
                values.pop(name, None)
        return {output.name: values[output.name] for output in graph.output}

    def _node(self, node: Any, values: Arrays, types: dict[str, int], where: str) -> list[Any]:
        given = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type == "SequenceMap":
            raise NotRun(f"SequenceMap {node.name!r} is not run node by node")
        if node.op_type == "If":
            taken = bool(values[node.input[0]].reshape(-1)[0])
            branch = "then_branch" if taken else "else_branch"
            return self._body(given[branch].g, (), values, types, f"{where}/{branch}")
        if node.op_type in ("Loop", "Scan"):
            run = self._loop if node.op_type == "Loop" else self._scan
            return run(node, given, values, types, where)
        if node.op_type == "Constant" and "value" in given:
            types[node.output[0]] = given["value"].t.data_type
            return [_wide(onnx.numpy_helper.to_array(given["value"].t))]
        small = {types.get(node.output[0]), types.get(node.input[0]) if node.input else None}
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and small & SMALL:
            made = [_quantization(node, given, values, types.get(node.output[0], 0))]
        else:
            made = self._session(node, values, types, where)
        for index, name in enumerate(node.output):
            if name and name not in types:
                raise NotRun(f"the dtype of {name!r} ({node.op_type}) cannot be inferred")
            if self.rounded and types.get(name) in LOWS:
                made[index] = _rounded(made[index], types[name])
        return made

    def _body(
        self, body: Any, given: Iterable[Any], values: Arrays, types: dict[str, int], where: str
    ) -> list[Any]:
        """Outputs of a body, which reads the values around it too."""
        values, types = dict(values), dict(types)
        for value, array in zip(body.input, given, strict=True):
            values[value.name], types[value.name] = array, _type(value)
        return list(self._graph(body, values, types, where).values())

    def _loop(
        self, node: Any, given: Any, values: Arrays, types: dict[str, int], where: str
    ) -> list[Any]:
        most, go_on = (values[name] if name else None for name in node.input[:2])
        carried = [values[name] for name in node.input[2:]]
        go_on, rows, step = np.array(True) if go_on is None else go_on, list[list[Any]](), 0
        while bool(np.ravel(go_on)[0]) and (most is None or step < int(np.ravel(most)[0])):
            entry = (np.array(step), go_on, *carried)
            go_on, *made = self._body(given["body"].g, entry, values, types, f"{where}/body")
            carried, step = made[: len(carried)], step + 1
            rows.append(made[len(carried) :])
        if not rows and len(node.output) > len(carried):
            raise NotRun(f"Loop {node.name!r} has no step, so that its rows have no shape")
        return [*carried, *(np.stack(row) for row in zip(*rows, strict=True))]

    def _scan(
        self, node: Any, given: Any, values: Arrays, types: dict[str, int], where: str
    ) -> list[Any]:
        def each(name: str, count: int) -> list[int]:
            return list(given[name].ints) if name in given else [0] * count

        read = given["num_scan_inputs"].i
        states, scanned = len(node.input) - read, [values[n] for n in node.input[-read:]]
        carried = [values[name] for name in node.input[:states]]
        parts = [
            np.moveaxis(array, axis, 0)[:: -1 if back else 1]
            for array, axis, back in zip(
                scanned,
                each("scan_input_axes", read),
                each("scan_input_directions", read),
                strict=True,
            )
        ]
        rows: list[list[Any]] = []
        for step in zip(*parts, strict=True):
            made = self._body(given["body"].g, (*carried, *step), values, types, f"{where}/body")
            carried = made[:states]
            rows.append(made[states:])
        count = len(node.output) - states
        if not rows and count:
            raise NotRun(f"Scan {node.name!r} has no step, so that its rows have no shape")
        made = [
            np.moveaxis(np.stack(row)[:: -1 if back else 1], 0, axis)
            for row, axis, back in zip(
                zip(*rows, strict=True),
                each("scan_output_axes", count),
                each("scan_output_directions", count),
                strict=True,
            )
        ]
        return [*carried, *made]

    def _session(self, node: Any, values: Arrays, types: dict[str, int], where: str) -> list[Any]:
        feeds = {name: values[name] for name in node.input if name}
        session = self.sessions.get(where)
        if session is None:
            session = self.sessions[where] = self._started(node, feeds, types)
        wanted = [name for name in node.output if name]
        try:
            made = dict(zip(wanted, session.run(wanted, feeds), strict=True))
        except Exception as error:
            raise NotRun(f"{node.op_type} {node.name!r}: {str(error)[:300]}") from error
        return [made.get(name) for name in node.output]

    def _started(self, node: Any, feeds: Arrays, types: dict[str, int]) -> Any:
        alone = type(node)()
        alone.CopyFrom(node)
        for attribute in alone.attribute:
            if attribute.name in DTYPES and attribute.i in LOWS:
                attribute.i = FLOAT
            if attribute.HasField("t") and attribute.t.data_type in LOWS:
                array = _wide(onnx.numpy_helper.to_array(attribute.t))
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(array))
        value = onnx.helper.make_tensor_value_info
        # ONNX Runtime takes `sizes` of an unknown length for none at all.
        told = set(node.input[1:]) if node.op_type == "Resize" else set[str]()
        inputs = [
            value(
                name,
                onnx.helper.np_dtype_to_tensor_dtype(array.dtype),
                array.shape if name in told else [None] * array.ndim,
            )
            for name, array in feeds.items()
        ]
        outputs = [
            value(name, FLOAT if types[name] in SMALL | LOWS.keys() else types[name], None)
            for name in node.output
            if name and name in types
        ]
        graph = onnx.helper.make_graph([alone], "one", inputs, outputs)
        model = onnx.helper.make_model(
            graph, opset_imports=self.model.opset_import, ir_version=min(self.model.ir_version, 10)
        )
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            return runtime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise NotRun(f"{node.op_type} {node.name!r}: {str(error)[:300]}") from error


def _rounded(array: Any, dtype: int) -> Any:
    with np.errstate(over="ignore"):
        return array.astype(LOWS[dtype]).astype(np.float32)


def _wide(array: Any) -> Any:
    """FP32 for what ONNX Runtime's CPU provider computes in FP32, or numpy lacks."""
    return array.astype(np.float32) if array.dtype.name in NARROW else array


def _quantization(node: Any, given: Any, values: Arrays, result: int) -> Any:
    """QuantizeLinear to 4 bits or FP8 (result: its type), or DequantizeLinear from it, in numpy."""
    array = values[node.input[0]]
    axis = given["axis"].i if "axis" in given else 1
    block = given["block_size"].i if "block_size" in given else 0

    def spread(one: Any) -> Any:
        if block:
            return np.repeat(one, block, axis)[tuple(slice(size) for size in array.shape)]
        if one.ndim == 1 and one.size > 1:
            return one.reshape([-1 if i == axis % array.ndim else 1 for i in range(array.ndim)])
        return one

    scale = spread(values[node.input[1]])
    zero = spread(values[node.input[2]]) if len(node.input) > 2 and node.input[2] else 0
    if node.op_type == "DequantizeLinear":
        return ((array - zero) * scale).astype(np.float32)
    if result in FOURS:
        return np.clip(np.rint(array / scale) + zero, *FOURS[result]).astype(np.float32)
    most = float(ml_dtypes.finfo(EIGHTS[result]).max)
    return np.clip(array / scale, -most, most).astype(EIGHTS[result]).astype(np.float32)


def _type(value: Any) -> int:
    return value.type.tensor_type.elem_type


def _last_uses(graph: Any) -> dict[int, list[str]]:
    """Index of a node -> the values made in this graph that no later node reads."""
    kept = {output.name for output in graph.output}
    made = {name for node in graph.node for name in node.output} - kept
    last = {
        name: index for index, node in enumerate(graph.node) for name in _read(node) if name in made
    }
    found: dict[int, list[str]] = {}
    for name, index in last.items():
        found.setdefault(index, []).append(name)
    return found


def _read(node: Any) -> set[str]:
    """Names that a node reads, in its bodies too."""
    bodies = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    inner = {name for body in bodies for one in body.node for name in _read(one)}
    return {*node.input, *inner, *(output.name for body in bodies for output in body.output)}
