"""Graphs wholly in FP16, and what they give: python make_cases.py FOLDER MODEL.py[:DATA.py] …

For each: NAME.onnx (every value FP16, inputs and outputs FP32, opset 17, static shapes), and
NAME.npz with the inputs, `fp32` as FP32 computes it, and `emulated` as graph/model/emulate.py
predicts for FP16. test_emulation.py compares an engine with both. Needs PyTorch; the models define
build() and data(), as those of the recipes do.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from enginefarm.graph.model.emulate import emulate

OPSET = 17
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def loaded(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every FP32 value as FP16; inputs and outputs stay FP32, behind a Cast each."""
    graph = model.graph
    del graph.value_info[:]
    tensors = [*graph.initializer]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                tensors.append(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == FLOAT:
                attribute.i = HALF
    for tensor in tensors:
        if tensor.data_type == FLOAT:
            values = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    before, after = [], []
    for value in graph.input:
        if value.type.tensor_type.elem_type == FLOAT:
            for node in graph.node:
                renamed = [f"{one}.half" if one == value.name else one for one in node.input]
                node.input[:] = renamed
            before.append(helper.make_node("Cast", [value.name], [f"{value.name}.half"], to=HALF))
    for value in graph.output:
        for node in graph.node:
            node.output[:] = [f"{o}.half" if o == value.name else o for o in node.output]
            node.input[:] = [f"{i}.half" if i == value.name else i for i in node.input]
        after.append(helper.make_node("Cast", [f"{value.name}.half"], [value.name], to=FLOAT))
    nodes = [*before, *graph.node, *after]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto, feeds: dict[str, Any]) -> Any:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)[0]


def main(folder: Path, sources: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources:
        model_path, _, data_path = source.partition(":")
        module = loaded(Path(model_path))
        feeds = next((loaded(Path(data_path)) if data_path else module).data())
        name = Path(model_path).parent.name
        wide = folder / f"{name}.fp32.onnx"
        arguments = tuple(torch.from_numpy(value) for value in feeds.values())
        torch.onnx.export(
            module.build().eval(),
            arguments,
            str(wide),
            input_names=list(feeds),
            output_names=["y"],
            opset_version=OPSET,
            dynamo=False,
        )
        half = halved(onnx.load(wide))
        onnx.save(half, folder / f"{name}.onnx")
        found = {"fp32": run(onnx.load(wide), feeds), "emulated": run(emulate(half), feeds)}
        np.savez(folder / f"{name}.npz", **feeds, **found)
        print(name, {key: float(np.isfinite(value).mean()) for key, value in found.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
