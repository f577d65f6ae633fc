"""Compares an ONNX file with the graph that reading it produced."""

from __future__ import annotations

from pathlib import Path

from enginefarm.documents.recipe import Recipe
from enginefarm.documents.sources import OnnxSource
from enginefarm.errors import EnginefarmError, SourceError
from enginefarm.graph.model import onnx_files, onnx_shapes, ort, walk
from enginefarm.graph.model.arrays import Arrays
from enginefarm.graph.reading.fitting import SIZES_LEFT_OUT
from enginefarm.graph.reading.raising import came_as
from enginefarm.graph.reading.readable import nameless_parts
from enginefarm.graph.samples import feeds
from enginefarm.graph.sources.onnx_file import original
from enginefarm.graph.verification import closeness

SIZES = (
    "sizes that only the recipe fixes are not written into the graph, because they contradict a "
    "branch that is never taken"
)


def notes(recipe: Recipe, path: Path, work_dir: Path, sample: Arrays) -> tuple[str, ...]:
    """What was changed in the file when it was read, in words; empty for other sources.

    path: the graph with the recipe's dims and the raised opset.
    Raises: SourceError when the file and the graph return different numbers.
    """
    if not isinstance(recipe.source, OnnxSource):
        return ()
    model = onnx_files.graph_only(path)
    opset = came_as(model)
    double = _doubles(original(recipe.source, recipe.root, work_dir))
    left_out = any(item.key == SIZES_LEFT_OUT for item in model.metadata_props)
    sizes = (SIZES,) if left_out else ()
    if opset is None and not double:
        return sizes
    found: list[str] = []
    if opset is not None:
        found.append(f"the file has opset {opset}, which was raised to {walk.opset(model)}")
    if double:
        found.append("float64 in the file is computed in float32")
    checked = _compare(recipe, path, work_dir, sample)
    return (f"{'; '.join(found)} ({checked})", *sizes)


def _doubles(file: Path) -> bool:
    signature = onnx_shapes.input_signature(onnx_files.graph_only(file))
    return any(dtype == "float64" for dtype, _ in signature.values())


def _compare(recipe: Recipe, path: Path, work_dir: Path, sample: Arrays) -> str:
    assert isinstance(recipe.source, OnnxSource)
    file = original(recipe.source, recipe.root, work_dir)
    inputs = feeds.sized(sample, recipe, feeds.at(recipe.profiles[0], "opt"))
    came = onnx_files.graph_only(file)
    if nameless_parts(came):
        return "not compared with the file: ONNX Runtime crashes on a Split with nameless parts"
    signature = onnx_shapes.input_signature(came)
    asked = {name: array.astype(_numpy(signature[name][0])) for name, array in inputs.items()}
    try:
        session = ort.session(file, error=SourceError, what="the original file", plain=True)
        wanted = ort.run(session, asked, error=SourceError, what="the original file")
    except EnginefarmError as error:
        return f"not compared with the file, which ONNX Runtime cannot run: {error.why[:200]}"
    session = ort.session(path, error=SourceError, what="the graph", plain=True)
    made = ort.run(session, inputs, error=SourceError, what="the graph")
    for (name, before), after in zip(wanted.items(), made.values(), strict=True):
        difference = closeness.relative(before, after)
        if not difference <= closeness.ROUNDING:
            raise SourceError(
                f"source.path: raising {recipe.source.path} changed output {name!r}",
                why=f"the largest difference is {difference:.2g} of its largest value",
                fix="export the model at opset 13 or later",
            )
    return "the numbers equal the file's"


def _numpy(dtype: str) -> str:
    """float32 for bfloat16, and for an input without a type in the file: ONNX Runtime runs
    neither."""
    return dtype if dtype not in ("bfloat16", "undefined") else "float32"
