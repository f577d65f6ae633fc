"""OnnxSlim: the same function in fewer nodes, proven by running both.

It is an optimization, and never decides alone that a model cannot be built: where it fails or
changes what the graph computes, the original graph is used, and `Slimmed` says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from onnx import ModelProto, ValueInfoProto

from enginefarm import progress
from enginefarm.child.call import Child, Limits
from enginefarm.errors import SlimError, one_line
from enginefarm.graph.exporting.use import MAX_RELATIVE
from enginefarm.graph.model import onnx_files, ort
from enginefarm.graph.model.arrays import Arrays
from enginefarm.graph.verification import closeness
from enginefarm.schema import Frozen
from enginefarm.settings import build_limits

LIMIT_S = 900.0
"""OnnxSlim took 30 s at most for the models that were tried; a loop of it must end somewhere."""


class Slimmed(NamedTuple):
    """refused: why the graph at `path` is the one that came; empty where it is slimmed."""

    path: Path
    refused: str = ""


class SlimRequest(Frozen):
    """What `slim_onnx` hands to its child process."""

    src: Path
    dest_dir: Path
    external_above_bytes: int


def slim_onnx(src: Path, dest_dir: Path, feeds: Sequence[Arrays]) -> Slimmed:
    """Writes the slimmed graph to `dest_dir/model.onnx`, or the original graph if OnnxSlim fails,
    or its graph is not valid or computes different numbers.

    OnnxSlim runs in a child process: its crash, and its memory, are not this one's.
    feeds: inputs to compare both graphs on; best one for each corner of the profiles.
    Raises: SlimError when the graph that came cannot be read or run.
    """
    progress.report("slim", 0, 2)
    wanted = _results(src, feeds, "the graph before slimming")
    refused = ""
    try:
        request = SlimRequest(
            src=src.resolve(),
            dest_dir=dest_dir.resolve(),
            external_above_bytes=onnx_files.EXTERNAL_ABOVE_BYTES,
        )
        most = build_limits().memory_bytes * 3 // 4  # this process has the same limit, with it
        child = Child(what="OnnxSlim", error=SlimError, limits=Limits(LIMIT_S, most))
        child.call(f"{__name__}:slim_here", request.model_dump_json())
        path = dest_dir / onnx_files.MODEL_NAME
        onnx_files.check(path, error=SlimError, what="the slimmed graph")
        progress.report("slim", 1, 2, "compare")
        _compare(wanted, _results(path, feeds, "the slimmed graph"))
    except SlimError as error:
        refused = one_line(f"{error.what}: {error.why}" if error.why else error.what)
        path = onnx_files.write(onnx_files.read(src, error=SlimError), dest_dir)
    progress.report("slim", 2, 2)
    return Slimmed(path, refused)


def slim_here(request_json: str) -> str:
    """The child's part: writes the slimmed graph."""
    request = SlimRequest.model_validate_json(request_json)
    onnxslim: Any = import_module("onnxslim")  # no type stubs
    onnx_files.EXTERNAL_ABOVE_BYTES = request.external_above_bytes
    model = onnx_files.read(request.src, error=SlimError)
    inputs = [value.SerializeToString() for value in model.graph.input]
    try:
        slimmed = onnxslim.slim(model, verbose=False)
    except (Exception, SystemExit) as error:
        raise SlimError(
            f"OnnxSlim failed on {request.src.name}",
            why=one_line(f"{type(error).__name__}: {error}", 300),
        ) from error
    if slimmed is None or not slimmed.graph.node:
        raise SlimError(f"OnnxSlim returned an empty graph for {request.src.name}")
    _restore_inputs(slimmed, inputs)
    onnx_files.write(slimmed, request.dest_dir)
    return "{}"


def _restore_inputs(slimmed: ModelProto, inputs: Sequence[bytes]) -> None:
    """The inputs of an engine are the recipe's, in its order: one that turned out to have no
    effect stays in the signature."""
    del slimmed.graph.input[:]
    for value in inputs:
        slimmed.graph.input.append(ValueInfoProto.FromString(value))


def _results(path: Path, feeds: Sequence[Arrays], what: str) -> list[dict[str, Any]]:
    """Outputs for each of the feeds. The session, and the weights in it, are gone afterwards."""
    session = ort.session(path, error=SlimError, what=what)
    return [ort.run(session, inputs, error=SlimError, what=what) for inputs in feeds]


def _compare(wanted: list[dict[str, Any]], found: list[dict[str, Any]]) -> None:
    for before, after in zip(wanted, found, strict=True):
        if list(before) != list(after):
            raise SlimError(f"OnnxSlim changed the outputs: {list(before)} became {list(after)}")
        for name, array in before.items():
            relative = closeness.relative(array, after[name])
            if not relative <= MAX_RELATIVE:
                raise SlimError(
                    f"OnnxSlim changed the numbers of output {name!r}",
                    why=f"the largest difference is {relative:.2g} of its largest value, "
                    f"{MAX_RELATIVE:.0e} is allowed",
                )
