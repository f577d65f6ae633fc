"""A PyTorch module -> ONNX: which sizes it is traced at, and how. Failures: torch_failures.py."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from itertools import chain
from typing import TYPE_CHECKING, Any

from enginefarm import progress
from enginefarm.documents.recipe import DimRange, Recipe
from enginefarm.errors import ExportError, one_line
from enginefarm.graph.exporting import decompositions, torch_failures
from enginefarm.graph.exporting.tracing import in_other_words
from enginefarm.graph.model.edit import rename
from enginefarm.graph.reading import fitting
from enginefarm.graph.samples import feeds
from enginefarm.graph.sources import forward

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn
    from torch.export import ExportedProgram

    from enginefarm.graph.model.arrays import Arrays

MOST_ATTEMPTS = 3
"""Sets of sizes at which a model is exported before its error counts."""


def export(
    model: nn.Module | ExportedProgram, recipe: Recipe, sample: Arrays
) -> tuple[ModelProto, tuple[str, ...]]:
    """The graph with the recipe's names, and the operators that were written out for it.

    Raises: ExportError.
    """
    from torch.export import ExportedProgram

    if isinstance(model, ExportedProgram):
        forward.refuse_exchanged(model, [tensor.name for tensor in recipe.inputs])
        graph, written_out = _converted(model, recipe, lambda: model, model)
    else:
        _compute_parametrized_weights(model)
        called = forward.positional(model, [tensor.name for tensor in recipe.inputs])
        graph, written_out = _traced(called, model, recipe, sample)
    _name_values(graph, recipe)
    return graph, written_out


def _compute_parametrized_weights(model: nn.Module) -> None:
    """Replaces each parametrized weight by its value, which is a constant of a model in eval mode.

    How it is computed need not have an ONNX operator: an orthogonal weight is a matrix exponential.
    """
    from torch.nn import ModuleDict
    from torch.nn.utils import parametrize

    for part in list(model.modules()):
        parametrized = getattr(part, "parametrizations", None)
        if parametrize.is_parametrized(part) and isinstance(parametrized, ModuleDict):
            for name in list(parametrized):
                parametrize.remove_parametrizations(part, name)


def _traced(
    called: nn.Module, model: nn.Module, recipe: Recipe, sample: Arrays
) -> tuple[ModelProto, tuple[str, ...]]:
    """Exports at the first sizes that do, among those at which the model runs at all."""
    torch: Any = import_module("torch")  # its functions are typed in part
    shapes = tuple(
        {axis: dim for axis, dim in enumerate(tensor.shape) if isinstance(dim, str)}
        for tensor in recipe.inputs
    )
    failures: list[ExportError] = []
    stopped: Exception | None = None
    _fill_caches(called, recipe, sample)
    for sizes in _sizes(recipe):
        arrays = feeds.sized(sample, recipe, sizes).values()
        try:
            with _quiet(), torch.no_grad():
                called = forward.returning_tensors(called, forward.arguments(arrays, recipe))
        except Exception as error:
            if isinstance(error, ExportError) and not getattr(called, "guessed", False):
                raise
            stopped = stopped or error
            continue
        arguments = forward.arguments(arrays, recipe)
        dynamic = forward.as_bound(called, shapes) if any(shapes) else None

        def program(
            called: Any = called, arguments: Any = arguments, dynamic: Any = dynamic
        ) -> ExportedProgram:
            each = [dict.fromkeys(shape, torch.export.Dim.DYNAMIC) for shape in shapes]
            axes = dynamic and forward.as_bound(called, each)
            return torch.export.export(called, arguments, dynamic_shapes=axes, strict=False)

        try:
            return _converted(called, recipe, program, model, arguments, dynamic)
        except ExportError as error:
            failures.append(error)
        if len(failures) == MOST_ATTEMPTS:
            break
    if failures:
        raise failures[0]
    assert stopped is not None, "a profile has sizes"
    if called is not model:
        raise ExportError(
            f"inputs: {type(model).__name__}.forward does not take these "
            f"{len(recipe.inputs)} inputs",
            why=f"called with one dict or with keywords, it raised {type(stopped).__name__}: "
            f"{one_line(stopped, 200)}{torch_failures.place(stopped)}",
            fix="list one input for each argument of forward, in its order; where one argument "
            "is a list of all of them, write so in forward: `features: list[Tensor]`",
        ) from stopped
    raise ExportError(
        f"source: {type(model).__name__} cannot be run at any size of profile "
        f"{recipe.profiles[0].name}",
        why=f"{type(stopped).__name__}: {one_line(stopped, 300)}{torch_failures.place(stopped)}",
        fix=forward.on_a_cpu(stopped)
        or "correct the model, the recipe's inputs, or the sizes in `profiles`",
    ) from stopped


def _sizes(recipe: Recipe) -> Iterator[dict[str, int]]:
    """Sizes to trace at, the best first: each set once.

    As the user wrote them, where dims differ from each other and from 1: torch takes equal
    sizes for one dim, and a size of 1 for a constant. Then written sizes mixed so that they
    differ, then any that differ, and last those that are equal, for a model that needs it.
    """
    points: tuple[feeds.Point, ...] = ("opt", "max", "min")
    corners = [feeds.at(profile, point) for point in points for profile in recipe.profiles]
    fine = [dims for dims in corners if _differ(recipe, dims)]
    rest = [dims for dims in corners if dims not in fine]
    apart = (_apart(recipe, _written), _apart(recipe, _within))
    seen: list[dict[str, int]] = []
    for dims in chain(fine, apart, rest):
        if dims not in seen:
            seen.append(dims)
            yield dims


def _differ(recipe: Recipe, dims: dict[str, int]) -> bool:
    # A dim that every profile holds at one size may be taken for a constant.
    free = [size for dim, size in dims.items() if len(set(recipe.dim_ranges[dim])) > 1]
    return len(set(free)) == len(free) and 1 not in free


def _apart(recipe: Recipe, offered: Callable[[DimRange], list[int]]) -> dict[str, int]:
    """For each dim of the first profile, an offered size above 1 that no other dim has."""
    found: dict[str, int] = {}
    for dim in recipe.dynamic_dims:
        bounds = recipe.profiles[0].dims[dim]
        free = [size for size in offered(bounds) if size > 1 and size not in found.values()]
        found[dim] = free[0] if free else bounds.opt
    return found


def _written(bounds: DimRange) -> list[int]:
    return [bounds.opt, bounds.max, bounds.min]


def _within(bounds: DimRange) -> list[int]:
    return [bounds.opt, *range(min(bounds.max, bounds.min + 64), bounds.min - 1, -1)]


def _fill_caches(called: nn.Module, recipe: Recipe, sample: feeds.Arrays) -> None:
    """Runs the model at its largest sizes first: a table that it keeps for the longest sequence
    that it has seen, such as one of angles, is then long enough for every other."""
    torch: Any = import_module("torch")
    if not recipe.dynamic_dims:
        return
    largest = {dim: most for dim, (_, most) in recipe.dim_ranges.items()}
    arrays = feeds.sized(sample, recipe, largest).values()
    with suppress(Exception), _quiet(), torch.no_grad():  # sizes of two profiles need not fit
        called(*forward.arguments(arrays, recipe))


def _converted(
    model: Any,
    recipe: Recipe,
    program: Callable[[], ExportedProgram],
    named: Any,
    arguments: tuple[Any, ...] = (),
    shapes: Any = None,
) -> tuple[ModelProto, tuple[str, ...]]:
    """Exports; where the exporter refuses an operator, once more with operators written out."""
    torch: Any = import_module("torch")

    def convert(model: Any, arguments: tuple[Any, ...], shapes: Any) -> ModelProto:
        with in_other_words() as translations:
            made = torch.onnx.export(
                model,
                arguments,
                dynamo=True,
                opset_version=recipe.export.opset,
                dynamic_shapes=shapes,
                verbose=False,
                custom_translation_table=translations,
            )
        return made.model_proto

    try:
        with _quiet(), torch.no_grad():
            return convert(model, arguments, shapes), ()
    except Exception as error:
        refused = error
    progress.report("export", 1, 4, "write operators out")
    try:
        with _quiet(), torch.no_grad(), in_other_words():
            whole: Any = program()
            before = _operators(whole)
            with _plain_attention():
                written = whole.run_decompositions(decompositions.table())
            graph = convert(written, (), None)
    except Exception:
        raise torch_failures.of_export(refused, named, recipe) from refused
    return graph, tuple(sorted(before - _operators(written)))


@contextmanager
def _plain_attention() -> Generator[None]:
    """Attention decomposes into MatMul and Softmax, and into no kernel of one device."""
    attention: Any = import_module("torch.nn.attention")
    with attention.sdpa_kernel([attention.SDPBackend.MATH]):
        yield


def _operators(program: Any) -> set[str]:
    nodes = (node for node in program.graph.nodes if node.op == "call_function")
    return {str(node.target).rpartition(".")[0] for node in nodes if "aten." in str(node.target)}


def _name_values(graph: ModelProto, recipe: Recipe) -> None:
    """Gives inputs and outputs the recipe's names. torch would take a name twice when an
    inner value has it already."""
    found = [value.name for value in graph.graph.input]
    if len(found) != len(recipe.inputs):
        raise ExportError(
            f"inputs: the graph has {len(found)} inputs, the recipe {len(recipe.inputs)}",
            why=f"the graph's are {', '.join(found) or 'none'}; one that is not used is dropped",
            fix="list exactly the inputs that the model uses",
        )
    fitting.separate_outputs(graph, recipe)
    names = dict(zip(found, (tensor.name for tensor in recipe.inputs), strict=True))
    rename(graph, names | fitting.names_of_outputs(graph, recipe, ExportError))


@contextmanager
def _quiet() -> Generator[None]:
    """Keeps the exporter's notes off the console. Errors are raised all the same."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
