"""Plans for the fake TensorRT (tests/fake_gpu), and the models they are made of."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import onnx
import tiny_onnx
from onnx import TensorProto, helper

from enginefarm.documents.spec import MinOptMax, ShapeProfile

SMALL = ShapeProfile(name="small", shapes={"x": MinOptMax(min=(1, 4), opt=(2, 4), max=(4, 4))})
LARGE = ShapeProfile(name="large", shapes={"x": MinOptMax(min=(4, 4), opt=(8, 4), max=(64, 4))})


def doubling(path: Path, **faults: str) -> Path:
    """x [n, 4] float32 -> y = x + x. faults: see tests/fake_gpu/tensorrt/names.py."""
    node = helper.make_node("Add", ["x", "x"], ["y"], "add0")
    shape = ["n", 4]
    made = tiny_onnx.save(
        path,
        [node],
        [tiny_onnx.value("x", shape, TensorProto.FLOAT)],
        [tiny_onnx.value("y", shape, TensorProto.FLOAT)],
        [],
    )
    return faulty(made, **faults)


def faulty(path: Path, **faults: str) -> Path:
    model = onnx.load(path)
    helper.set_model_props(model, faults)
    onnx.save(model, path)
    return path


def plan_of(model: Path, *profiles: ShapeProfile) -> Path:
    """The plan that the fake builder would make of it, beside it."""
    loaded = onnx.load(model)
    plan = {
        "onnx": base64.b64encode(model.read_bytes()).decode(),
        "profiles": [
            {name: [s.min, s.opt, s.max] for name, s in one.shapes.items()} for one in profiles
        ],
        "faults": {entry.key: entry.value for entry in loaded.metadata_props},
        "asked": {"flags": [], "seconds": 0},
    }
    path = model.with_suffix(".plan")
    path.write_text(json.dumps(plan))
    return path
