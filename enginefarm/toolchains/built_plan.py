"""What is in a plan that another program built: TensorRT itself reads it, in a child process.

trtexec and ONNX Runtime do not show the network that they parsed; only the plan does.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from enginefarm.child.call import Child, Limits
from enginefarm.documents.manifest import TensorInfo
from enginefarm.documents.spec import BuildSpec, MinOptMax
from enginefarm.errors import BuildError, ToolchainError
from enginefarm.run.trt import Messages, started
from enginefarm.schema import Frozen
from enginefarm.toolchains import BuildRequest, tensorrt
from enginefarm.toolchains.builder_api import dtype_named, values_are_sizes

READING_S = 600


class PlanRequest(Frozen):
    """plan: one of TensorRT's own. plugins: libraries that it needs."""

    plan: Path
    plugins: tuple[Path, ...] = ()


class Contents(Frozen):
    """profiles: for each, the range of shapes of every input."""

    tensors: tuple[TensorInfo, ...]
    profiles: tuple[dict[str, MinOptMax], ...]


def require_bindings(toolchain: str) -> None:
    """Asked before a build, whose plan could not be read afterwards.

    Raises: ToolchainError where TensorRT's Python bindings are not installed.
    """
    if not any(find_spec(name) for name in tensorrt.MODULES):
        raise ToolchainError(
            f"toolchain {toolchain}: TensorRT's Python bindings are not installed",
            why="they check that a plan has the inputs and outputs of its graph, and run it",
            fix="pip install 'enginefarm[gpu]', in the version that builds the plans",
        )


def contents(plan: Path, request: BuildRequest) -> Contents:
    """What TensorRT says about the plan.

    Raises: BuildError for a plan that cannot be loaded, or that takes the values of an input as
    sizes; ToolchainError and HostError for what this host lacks.
    """
    child = Child(f"the plan of {request.spec.label}", error=BuildError, limits=Limits(READING_S))
    asked = PlanRequest(plan=plan, plugins=request.plugins)
    found = child.ask(f"{__name__}:read_here", asked, Contents)
    for tensor in found.tensors:
        if tensor.is_shape_tensor:
            raise values_are_sizes(tensor.name)
    return found


def require_profiles(found: Contents, spec: BuildSpec) -> None:
    """Raises: BuildError where the plan has other ranges of shapes than the spec."""
    for index, profile in enumerate(spec.profiles):
        made = found.profiles[index] if index < len(found.profiles) else {}
        for name, wanted in profile.shapes.items():
            if made.get(name) != wanted:
                raise BuildError(
                    f"profile {profile.name!r}: the plan has another range of shapes for {name!r}",
                    why=f"it has {_range(made.get(name))}, and the recipe asks for "
                    f"{_range(wanted)}",
                    fix="see build.log for what the builder was told",
                )


def _range(shapes: MinOptMax | None) -> str:
    return f"{shapes.min}/{shapes.opt}/{shapes.max}" if shapes else "none"


def read_here(request: str) -> str:
    """The child's part: PlanRequest in, Contents out, both as JSON."""
    asked = PlanRequest.model_validate_json(request)
    trt = tensorrt.load()
    messages = Messages()
    _, runtime = started(trt, "TensorRT's runtime", trt.Runtime, asked.plugins, messages)
    engine = runtime.deserialize_cuda_engine(asked.plan.read_bytes())
    if engine is None:
        raise BuildError(
            f"TensorRT {trt.__version__} cannot load the plan that was built",
            why=messages.cause(),
            fix="install the Python bindings of the same TensorRT build",
        )
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    tensors = tuple(_tensor(trt, engine, name) for name in names)
    profiles = tuple(
        {
            tensor.name: _shapes(engine.get_tensor_profile_shape(tensor.name, index))
            for tensor in tensors
            if tensor.role == "input" and not tensor.is_shape_tensor
        }
        for index in range(engine.num_optimization_profiles)
    )
    return Contents(tensors=tensors, profiles=profiles).model_dump_json()


def _shapes(found: Any) -> MinOptMax:
    low, opt, high = (tuple(shape) for shape in found)
    return MinOptMax(min=low, opt=opt, max=high)


def _tensor(trt: Any, engine: Any, name: str) -> TensorInfo:
    given = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
    role: Literal["input", "output"] = "input" if given else "output"
    return TensorInfo(
        name=name,
        dtype=dtype_named(name, engine.get_tensor_dtype(name)),
        shape=tuple(engine.get_tensor_shape(name)),
        role=role,
        is_shape_tensor=given and bool(engine.is_shape_inference_io(name)),
    )
