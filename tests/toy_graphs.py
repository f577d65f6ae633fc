"""Toy ONNX graphs: made, run, read as a recipe's source, and as the reference of a search."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, parser

from enginefarm.documents.recipe import Recipe
from enginefarm.errors import ExportError
from enginefarm.graph.exporting import export
from enginefarm.graph.model import ort
from enginefarm.graph.precisions.evidence import Evidence

HEAD = '<ir_version: 10, opset_import: ["" : 20]>'


def made(text: str, head: str = HEAD, **weights: Any) -> onnx.ModelProto:
    """The model that ONNX's text form describes, with these initializers."""
    model = parser.parse_model(f"{head} {text}")
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()
    )
    return model


def gru(units: int, *, sides: int = 1, bias: bool = False, state: bool = False) -> onnx.ModelProto:
    """Over 7 steps of a batch of one, with all states and the last one."""
    normal = np.random.default_rng(0).standard_normal
    weights = {"w": normal((sides, 3 * units, 3)), "r": normal((sides, 3 * units, units))}
    weights |= {"b": normal((sides, 6 * units))} if bias else {}
    last = f"float[{sides}, 1, {units}]"
    given = ["x", "w", "r", "b" if bias else "", *(("", "h") if state else ())]
    return made(
        f"g (float[7, 1, 3] x{f', {last} h' if state else ''}) => "
        f"(float[7, {sides}, 1, {units}] y, {last} last) "
        f"{{ y, last = GRU <hidden_size = {units}> ({', '.join(given).rstrip(', ')}) }}",
        **{name: array.astype(np.float32) for name, array in weights.items()},
    )


def run(
    model: onnx.ModelProto | Path,
    feeds: Mapping[str, Any] | None = None,
    *,
    plain: bool = False,
    **named: Any,
) -> dict[str, np.ndarray]:
    """Outputs of ONNX Runtime, by name. plain: without its optimizations."""
    how = {"error": ExportError, "what": "test"}
    start = ort.session if isinstance(model, Path) else ort.session_of
    arrays = {name: np.asarray(value) for name, value in {**(feeds or {}), **named}.items()}
    return ort.run(start(model, **how, plain=plain), arrays, **how)


def result(model: Path, x: np.ndarray) -> np.ndarray:
    """The first output, without ONNX Runtime's optimizations."""
    return next(iter(run(model, x=x, plain=True).values()))


def evidence(
    model: onnx.ModelProto, folder: Path, feeds: Mapping[str, Any], **more: Any
) -> Evidence:
    """A reference of one batch, as the FP32 graph computes it."""
    path = folder / "reference.npz"
    arrays = {f"0000/input/{name}": np.asarray(value) for name, value in feeds.items()}
    arrays |= {f"0000/output/{name}": value for name, value in run(model, feeds).items()}
    np.savez(path, **arrays)
    return Evidence(path, **more)


def recipe(folder: Path, model: onnx.ModelProto, **changes: Any) -> Recipe:
    """A recipe of the model, which is written beside it; by default from float32 x [batch, 4]."""
    onnx.save(model, folder / "m.onnx")
    fields = {
        "name": "m",
        "source": {"kind": "onnx", "path": "m.onnx"},
        "inputs": [{"name": "x", "shape": ["batch", 4]}],
        "profiles": [{"dims": {"batch": [1, 2, 3]}}],
        "gpus": ["l4"],
        **changes,
    }
    return Recipe.model_validate(fields).at(folder)


def exported(folder: Path, model: onnx.ModelProto, **changes: Any) -> export.Exported:
    return export.export_onnx(recipe(folder, model, **changes), folder / "out")
