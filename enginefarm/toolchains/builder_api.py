"""What TensorRT and TensorRT-RTX share of the Builder API.

`trt` is the imported binding (`tensorrt` or `tensorrt_rtx_bindings`): both are native
modules without types, hence `Any`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from enginefarm.documents.builder import BuilderOptions, DType
from enginefarm.documents.manifest import TensorInfo
from enginefarm.documents.spec import ShapeProfile
from enginefarm.errors import BuildCancelled, BuildError
from enginefarm.progress import SINK, report
from enginefarm.run.refusals import not_built
from enginefarm.run.trt import DTYPES, Messages
from enginefarm.toolchains.onnx_io import require_graphs


def make_monitor(trt: Any) -> Any:
    """An IProgressMonitor that reports percent of the whole build to the current SINK: one figure
    of nested phases, which only grows."""
    # Builders call back on threads of their own, where the context variable is not set.
    sink = SINK.get()
    phases: dict[str, tuple[str | None, int, int]] = {}
    """Phase -> the phase around it, its steps that are done, and all of them."""

    def fraction(name: str) -> float:
        _, done, steps = phases[name]
        return min((done + furthest(name)) / steps, 1.0)

    def furthest(parent: str | None) -> float:
        inner = [name for name, (around, _, _) in phases.items() if around == parent]
        return max(map(fraction, inner), default=0.0)

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._percent = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases[phase_name] = (parent_phase, 0, max(num_steps, 1))
            self._report(phase_name)

        def step_complete(self, phase_name: str, step_index: int) -> bool:
            if phase_name in phases:
                parent, _, steps = phases[phase_name]
                phases[phase_name] = (parent, min(step_index + 1, steps), steps)
            self._report(phase_name)
            return True  # False would cancel; the parent process kills instead, which is prompt

        def phase_finish(self, phase_name: str) -> None:
            phases.pop(phase_name, None)

        def _report(self, phase_name: str) -> None:
            self._percent = max(self._percent, 100.0 * furthest(None))
            sink("build", self._percent, 100.0, phase_name)

    return Monitor()


def add_profiles(
    builder: Any, config: Any, network: Any, profiles: tuple[ShapeProfile, ...]
) -> None:
    """One optimization profile for each of the spec's, in their order.

    Raises: BuildError, which names the profile and the input, also for an input whose values the
    network takes as sizes: a profile of ours has shapes, and would fix these values to its shape.
    """
    inputs = {tensor.name: tensor for tensor in _inputs(network)}
    for index, profile in enumerate(profiles):
        made = builder.create_optimization_profile()
        for name, shapes in profile.shapes.items():
            if name not in inputs:
                raise BuildError(
                    f"profile {profile.name!r}: the network has no input {name!r}",
                    why=f"its inputs are {', '.join(inputs)}",
                )
            if inputs[name].is_shape_tensor:
                raise values_are_sizes(name)
            try:
                made.set_shape(name, shapes.min, shapes.opt, shapes.max)
            except (RuntimeError, ValueError, TypeError) as error:
                raise BuildError(
                    f"profile {profile.name!r}: input {name!r} refuses min {shapes.min}, "
                    f"opt {shapes.opt}, max {shapes.max}",
                    why=str(error),
                    fix="min ≤ opt ≤ max must hold in each dim; use as many dims as the input has",
                ) from None
        # set_shape returns None even where min > max; only this call says so.
        added = config.add_optimization_profile(made)
        if added != index:
            shapes = ", ".join(
                f"{name} {s.min}/{s.opt}/{s.max}" for name, s in profile.shapes.items()
            )
            raise BuildError(
                f"profile {profile.name!r} is not valid for this network: {shapes}",
                why=f"add_optimization_profile returned {added}",
                fix="min ≤ opt ≤ max must hold in each dim, and static dims must be equal in all",
            )


def values_are_sizes(name: str) -> BuildError:
    """The error for an input whose values a network or an engine takes as sizes."""
    return BuildError(
        f"inputs: the values of {name!r} decide a shape in the model",
        why="the engine would need a range of these values, and profiles have only ranges of dims",
        fix=f"make {name!r} a constant of the model, or use an input whose dim has that size",
    )


def network_tensors(network: Any, onnx: Path) -> tuple[TensorInfo, ...]:
    """Inputs and outputs, as the parsed network declares them.

    Raises: BuildError where the graph at `onnx` has others.
    """
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    found = (
        *(_tensor(tensor, "input") for tensor in _inputs(network)),
        *(_tensor(tensor, "output") for tensor in outputs),
    )
    require_graphs(found, onnx)
    return found


def write_network(network: Any, dest: Path) -> Path:
    """The parsed network's layers as JSON, before the builder fuses them: names, kinds, types.

    For toolchains whose plans no inspector can open where they are built. Read by
    `documents.layers`, which knows by `Network` that nothing is said of fusion and tactics.
    """
    layers = [_network_layer(network.get_layer(index)) for index in range(network.num_layers)]
    dest.write_text(json.dumps({"Network": True, "Layers": layers}), "utf-8")
    return dest


def _network_layer(layer: Any) -> dict[str, Any]:
    kind = str(layer.type).rpartition(".")[2]
    inputs = [layer.get_input(index) for index in range(layer.num_inputs)]
    outputs = [layer.get_output(index) for index in range(layer.num_outputs)]
    given = "Constants" if kind == "CONSTANT" else "Outputs"
    return {
        "Name": layer.name,
        "LayerType": kind,
        "Metadata": getattr(layer, "metadata", ""),
        # An input that is left out (an optional one) is None.
        "Inputs": [_described(tensor) for tensor in inputs if tensor is not None],
        given: [_described(tensor) for tensor in outputs if tensor is not None],
    }


def _described(tensor: Any) -> dict[str, Any]:
    try:
        dims = [int(dim) for dim in tensor.shape]
    except ValueError:  # the rank itself is not known
        dims = [-1]
    return {
        "Name": tensor.name,
        "Dimensions": dims,
        "Datatype": str(tensor.dtype).rpartition(".")[2],
    }


def set_checked(target: Any, attribute: str, value: Any, option: str) -> None:
    """Sets, and reads back: some setters log an error and continue.

    Raises: BuildError, naming the option.
    """
    setattr(target, attribute, value)
    now = getattr(target, attribute)
    if now != value:
        raise BuildError(f"{option}: asked for {value}, and the builder uses {now}")


def set_flag(trt: Any, config: Any, name: str, option: str) -> None:
    """Sets a BuilderFlag by name.

    Raises: BuildError where this version has no such flag, or refuses it.
    """
    flag = getattr(trt.BuilderFlag, name, None)
    if flag is None:
        raise BuildError(f"{option}: {trt.__name__} {trt.__version__} has no BuilderFlag.{name}")
    config.set_flag(flag)
    if not config.get_flag(flag):
        raise BuildError(f"{option}: the builder did not keep BuilderFlag.{name}")


def set_common(trt: Any, config: Any, options: BuilderOptions) -> None:
    """The options that both builders have. TF32 is cleared: it is on by default, and keeps 10 of 23
    bits of each factor (decision 0210).

    Raises: BuildError for what the builder does not keep.
    """
    level, option = options.optimization_level, "builder.optimization_level"
    set_checked(config, "builder_optimization_level", level, option)
    config.clear_flag(trt.BuilderFlag.TF32)
    if config.get_flag(trt.BuilderFlag.TF32):
        raise BuildError("the builder did not clear BuilderFlag.TF32: FP32 would be TF32")
    if options.workspace_mib is not None:
        pool = trt.MemoryPoolType.WORKSPACE
        config.set_memory_pool_limit(pool, options.workspace_mib << 20)
    if options.sparse_weights:
        set_flag(trt, config, "SPARSE_WEIGHTS", "builder.sparse_weights")


def write_plan(builder: Any, network: Any, config: Any, dest: Path, messages: Messages) -> None:
    """Builds and writes the plan.

    Raises: BuildError with the logger's cause; BuildOutOfMemory; BuildCancelled; HostError
    for what this host lacks, such as a library of TensorRT's.
    """
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        if not messages.errors:
            raise BuildCancelled("the builder stopped without an error: cancelled")
        raise not_built(
            "the builder",
            "; ".join(dict.fromkeys(messages.errors)),
            refusal="refused the network",
            fix="the cause may name a layer; see build.log for what the builder did before",
        )
    with dest.open("wb") as stream:
        stream.write(memoryview(plan))
    report("build", 100.0, 100.0, "plan written")


def _inputs(network: Any) -> list[Any]:
    return [network.get_input(index) for index in range(network.num_inputs)]


def _tensor(tensor: Any, role: Literal["input", "output"]) -> TensorInfo:
    return TensorInfo(
        name=tensor.name,
        dtype=dtype_named(tensor.name, tensor.dtype),
        shape=tuple(tensor.shape),
        role=role,
        is_shape_tensor=role == "input" and bool(tensor.is_shape_tensor),
    )


def dtype_named(tensor: str, kind: Any) -> DType:
    """The numpy name of a tensor's trt.DataType. Raises: BuildError where it has none."""
    name = str(kind).rpartition(".")[2]
    if name not in DTYPES:
        raise BuildError(f"tensor {tensor!r}: its type {name} has no numpy counterpart here")
    return DTYPES[name]
