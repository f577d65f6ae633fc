"""Calls a module with positional inputs, and collects the tensors that it returns.

Everything else calls a module with the recipe's inputs in their order and counts tensors. A
forward that takes keywords only, or one dict, is wrapped so that this holds for it as well.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, get_origin

from enginefarm.errors import ExportError, one_line

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

    from enginefarm.documents.recipe import Recipe
    from enginefarm.graph.model.arrays import Array


def arguments(arrays: Iterable[Array], recipe: Recipe) -> tuple[Tensor, ...]:
    """Tensors of the recipe's types, in the order of its inputs. bfloat16 comes as float32."""
    torch: Any = import_module("torch")  # its functions are typed in part
    return tuple(
        torch.from_numpy(array.copy()).to(getattr(torch, given.dtype))
        for array, given in zip(arrays, recipe.inputs, strict=True)
    )


def positional(module: nn.Module, inputs: Sequence[str]) -> nn.Module:
    """The module, callable with one tensor for each of these inputs, in their order.

    Inputs that are all named as parameters of forward are given to these, in whichever order they
    are listed.

    Raises: ExportError when forward takes them in no way that is known.
    """
    signature = inspect.signature(module.forward)
    parameters, refused = signature.parameters, ""
    try:
        bound = signature.bind(*inputs).arguments
    except TypeError as error:
        refused = str(error)
    else:
        if _takes(parameters, Mapping, r"(typing\.)?(dict|Dict|Mapping)\b") and len(inputs) == 1:
            return _wrapped(
                module, lambda tensors: ((dict(zip(inputs, tensors, strict=True)),), {})
            )
        if not _misplaced(module, bound, inputs):
            return module
    try:
        signature.bind(**dict.fromkeys(inputs))
        return _wrapped(module, lambda tensors: ((), dict(zip(inputs, tensors, strict=True))))
    except TypeError:
        pass
    if sum(p.default is inspect.Parameter.empty for p in parameters.values()) == 1:
        if _takes(parameters, Sequence, r"(typing\.)?(list|List|tuple|Tuple|Sequence)\b"):
            return _wrapped(module, lambda tensors: (([*tensors],), {}))
        return _wrapped(
            module, lambda tensors: ((dict(zip(inputs, tensors, strict=True)),), {}), guess=True
        )
    raise ExportError(
        f"inputs: {type(module).__name__}.forward does not take these {len(inputs)} inputs",
        why=refused,
        fix="list one input for each argument of forward, in its order",
    )


def refuse_exchanged(program: ExportedProgram, inputs: Sequence[str]) -> None:
    """Raises: ExportError for an input with the name of another place of the program."""
    own = program.graph_signature.user_inputs
    for given, name in zip(inputs, own, strict=False):
        if given != name and given in own:
            raise ExportError(
                f"inputs: {given!r} is listed in place of {name!r}, but the program also has an "
                f"input {given!r}",
                why=f"its inputs are {', '.join(map(str, own))}",
                fix="list them in this order",
            )


def of_program(program: ExportedProgram) -> nn.Module:
    """The module of a program, callable with one tensor for each of its inputs, also where they
    were keywords or in a dict or list when it was exported."""
    pytree: Any = import_module("torch.utils._pytree")
    made: Any = program.module()
    nesting: Any = program.call_spec.in_spec
    given, named = nesting.children()
    if not named.num_leaves and all(child.is_leaf() for child in given.children()):
        return made
    return _wrapped(made, lambda tensors: pytree.tree_unflatten([*tensors], nesting))


def _takes(parameters: Mapping[str, inspect.Parameter], wanted: type, words: str) -> bool:
    """Whether the annotation of the first parameter says so: a type, or text with these words."""
    kind: object = next(iter(parameters.values())).annotation
    kind = get_origin(kind) or kind
    if isinstance(kind, str):
        return re.match(words, kind) is not None
    return isinstance(kind, type) and issubclass(kind, wanted) and kind is not str


def _misplaced(module: nn.Module, bound: Mapping[str, object], inputs: Sequence[str]) -> bool:
    """Whether inputs are named as forward's parameters and listed in another order.

    Raises: ExportError where only some are, so that neither names nor places say what is meant.
    """
    parameters = inspect.signature(module.forward).parameters
    wrong = [
        (given, name) for name, given in bound.items() if given != name and given in parameters
    ]
    if not wrong:
        return False
    if all(name in parameters for name in inputs):
        return True
    given, name = wrong[0]
    raise ExportError(
        f"inputs: {given!r} is listed in place of {name!r}, but {type(module).__name__}.forward "
        f"also has an argument {given!r}",
        why=f"forward takes {', '.join(parameters)}; the recipe lists {', '.join(inputs)}",
        fix="name every input after the argument of forward that it is for, or rename this one",
    )


def on_a_cpu(error: Exception) -> str:
    """A line for `fix`, where code asked for a GPU; else empty."""
    if not re.search(r"NVIDIA|CUDA", str(error)):
        return ""
    return "models are made and exported on a CPU: take `.cuda()` and device names out of the code"


def as_bound(module: nn.Module, values: Iterable[Any]) -> tuple[Any, ...]:
    """One value for each tensor, in the form that torch.export expects: one for each
    parameter of forward, those of `*args` together in a tuple."""
    return tuple(inspect.signature(module.forward).bind(*values).arguments.values())


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def _wrapped(
    module: nn.Module,
    arguments: Callable[[tuple[Any, ...]], Arguments],
    results: Callable[[Any], Any] = lambda returned: returned,
    *,
    guess: bool = False,
) -> nn.Module:
    from torch import nn

    class PositionalModule(nn.Module):
        guessed = guess
        """Whether nothing but the number of its arguments says how the module is called."""

        def __init__(self) -> None:
            super().__init__()
            self.module = module
            self.training = False  # the module is in eval mode, and that of a program has no modes

        def forward(self, *tensors: Tensor) -> Any:
            given, named = arguments(tensors)
            return results(self.module(*given, **named))

    return PositionalModule()


def returning_tensors(module: nn.Module, given: tuple[Tensor, ...]) -> nn.Module:
    """The module, if it returns tensors only for these arguments; else one that leaves out the
    numbers and texts among them, which torch.onnx takes for tensors.

    Raises: as `tensors`, and whatever the module raises.
    """
    import torch

    pytree: Any = import_module("torch.utils._pytree")
    returned = module(*given)
    tensors(returned)
    leaves: list[Any] = pytree.tree_leaves(returned)
    if all(leaf is None or isinstance(leaf, torch.Tensor) for leaf in leaves):
        return module
    return _wrapped(module, lambda given: (given, {}), tensors)


def tensors(returned: object) -> list[Tensor]:
    """The tensors in what forward returned: in tuples, lists, dicts and dataclasses, in order.

    Raises: ExportError naming another type that may hold tensors, or where there are none.
    """
    import torch

    pytree: Any = import_module("torch.utils._pytree")  # torch.export's own walk
    _register_dataclasses(returned, pytree)
    leaves: list[Any] = pytree.tree_leaves(returned)
    for leaf in leaves:
        if not isinstance(leaf, torch.Tensor | int | float | str | bool | type(None)):
            kind = type(leaf).__name__
            raise ExportError(
                f"the model's forward returns {kind}, which cannot be exported",
                fix="return tensors, or tuples, lists, dicts or dataclasses of them"
                + ("; of transformers: model.config.use_cache = False" * ("Cache" in kind)),
            )
    found = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    if not found:
        raise ExportError(
            f"the model's forward returns no tensor: it returns {one_line(repr(returned), 100)}",
            fix="return the tensors that the engine is to compute",
        )
    return found


def _register_dataclasses(value: object, pytree: Any) -> None:
    """Makes torch.export know every dataclass in the value."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        if kind not in pytree.SUPPORTED_NODES:
            export: Any = import_module("torch.export")
            export.register_dataclass(kind)

    def is_child(item: object) -> bool:
        return item is not value

    for child in pytree.tree_leaves(value, is_leaf=is_child):
        if child is not value:
            _register_dataclasses(child, pytree)
