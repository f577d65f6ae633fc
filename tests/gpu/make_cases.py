"""Graphs wholly in FP16, and what they give: python make_cases.py FOLDER MODEL.py[:DATA.py] …

For each: NAME.onnx (every value FP16, inputs and outputs FP32, opset 17, static shapes), and
NAME.npz with the inputs, `fp32` as FP32 computes it, and `emulated` as graph/emulate.py predicts
for FP16. test_emulation.py compares an engine with both. Needs PyTorch; the models define
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
from onnxconverter_common import float16

from enginefarm.graph.emulate import emulate

OPSET = 17


def loaded(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
        torch.onnx.export(
            module.build().eval(),
            tuple(torch.from_numpy(value) for value in feeds.values()),
            str(wide),
            input_names=list(feeds),
            output_names=["y"],
            opset_version=OPSET,
            dynamo=False,
        )
        half = float16.convert_float_to_float16(onnx.load(wide), keep_io_types=True, op_block_list=[])
        onnx.save(half, folder / f"{name}.onnx")
        found = {"fp32": run(onnx.load(wide), feeds), "emulated": run(emulate(half), feeds)}
        np.savez(folder / f"{name}.npz", **feeds, **found)
        print(name, {key: float(np.isfinite(value).mean()) for key, value in found.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
