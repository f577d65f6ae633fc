"""Whether a model returns the same numbers each time, which verifying a precision needs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from enginefarm.errors import ModelError, one_line
from enginefarm.graph.model import walk
from enginefarm.graph.verification import closeness

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto
    from torch import Tensor

    from enginefarm.graph.model.arrays import Arrays
    from enginefarm.graph.sources import LoadedModel

    Runner = Callable[[Arrays], Arrays]

TOLERANCE = 1e-5
"""Relative to an output's largest value: threads may add in another order. Random numbers and other
weights differ by far more."""
RANDOM = frozenset(
    (
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    )
)


def refuse_random(made: ModelProto) -> None:
    """Raises: ModelError for a graph with an operator that draws random numbers."""
    for node in walk.nodes(made.graph):
        if node.op_type in RANDOM or _trains(made, node):
            raise ModelError(
                f"the model draws random numbers: node {walk.label(node)!r} ({node.op_type})",
                why="no engine could be compared with it"
                if node.op_type in RANDOM
                else "its training_mode is on, or an input",
                fix="give the numbers as an input, or export the model in eval mode",
            )


def _trains(made: ModelProto, node: NodeProto) -> bool:
    """Whether it is a Dropout whose third input is the constant true, or no constant at all."""
    from onnx import numpy_helper

    if node.op_type != "Dropout" or len(node.input) < 3 or not node.input[2]:
        return False
    values = [tensor for name, tensor in walk.constants(made.graph) if name == node.input[2]]
    return not values or any(bool(numpy_helper.to_array(value).any()) for value in values)


def require(
    run: Runner,
    inputs: Arrays,
    model: LoadedModel,
    again: Callable[[], Runner] | None,
    other: Arrays,
) -> Arrays:
    """The outputs of the model, which is run twice, and once more as `again` loads it and after it
    has run on the `other` inputs; all three must agree.

    Raises: ModelError that says which of these it is, and what in the model changes.
    """
    before = _buffers(model)
    first = run(inputs)
    after = _buffers(model)
    changed = [name for name, value in after.items() if not value.equal(before.get(name, value))]
    different = _different(first, run(inputs))
    if different:
        raise ModelError(
            f"the model returns different numbers when it runs again: {different}",
            why=f"running it changes its buffer {', '.join(changed)}"
            if changed
            else "it draws random numbers (dropout outside eval mode, torch.rand), or keeps state",
            fix="call model.eval() before it is exported, also for its normalization layers"
            if any(name.endswith("running_mean") for name in changed)
            else "make the state an input and an output of forward"
            if changed
            else "take the random numbers out: F.dropout needs training=self.training; make state "
            "an input and an output of forward",
        )
    different = "" if again is None else _after(other, again(), first, inputs)
    if not different or again is None:
        return first
    if _different(first, again()(inputs)):
        raise ModelError(
            f"the model returns different numbers each time it is loaded: {different}",
            why="its weights are drawn at random each time, so no engine could be compared with it",
            fix="give a checkpoint, or call torch.manual_seed before the layers are made",
        )
    raise ModelError(
        f"the model returns different numbers after it has run on other inputs: {different}",
        why="it stores something of its first inputs, and an engine would always use "
        "that of the verification data",
        fix="compute it in __init__, or each time that forward is called",
    )


def _after(other: Arrays, run: Runner, first: Arrays, inputs: Arrays) -> str:
    """How a model that has run on other inputs differs from `first`; empty when it does not."""
    with suppress(Exception):  # of the model itself, which may not take these inputs
        run(other)
    try:
        return _different(first, run(inputs))
    except Exception as error:  # likewise: what it has kept may not fit
        return f"{type(error).__name__}: {one_line(error, 200)}"


def _different(one: Arrays, other: Arrays) -> str:
    """Which output differs and by how much; empty when none does."""
    for name, wanted in one.items():
        found = other[name]
        if wanted.shape != found.shape:
            return f"output {name!r} has shape {wanted.shape}, then {found.shape}"
        difference = closeness.relative(wanted, found)
        if difference > TOLERANCE:
            return f"output {name!r} differs by {difference:.3g} of its largest value"
    return ""


def _buffers(model: LoadedModel) -> dict[str, Tensor]:
    """Copies of a module's buffers; nothing for a file or an exported program."""
    named = getattr(model, "named_buffers", None)
    if isinstance(model, Path) or named is None:
        return {}
    return {name: value.detach().clone() for name, value in named()}
