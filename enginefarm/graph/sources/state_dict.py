"""Which of a checkpoint's values are the model's weights, and how they get into the module."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from enginefarm.errors import SourceError
from enginefarm.graph.sources import checkpoint

if TYPE_CHECKING:
    from torch import Tensor, nn

    Weights = dict[str, Tensor]

USUAL = ("state_dict", "model", "model_state_dict", "module")
"""Where training scripts put the weights, the first of them first."""

PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
"""What wrappers put before each name: DataParallel, torch.compile, a training module."""

DEEPEST = 3


def read(file: Path, *, field: str, key: str | None = None) -> Weights:
    """The weights in the file, wherever it holds them.

    key: the recipe's `checkpoint_key`, for a file that holds several models' weights.
    Raises: as `checkpoint.read`; SourceError that lists the keys when there is not one choice.
    """
    found: Any = checkpoint.read(file, field=field)
    offered = dict(_candidates(found, ""))
    if key is not None:
        if key in offered:
            return offered[key]
        raise SourceError(
            f"source.checkpoint_key: {file.name} holds no weights under {key!r}",
            why=_contents(found, offered),
            fix="name one of the keys that hold weights, or leave the field out",
        )
    usual = [name for name in ("", *USUAL) if name in offered]
    chosen = usual[0] if usual else next(iter(offered), None)
    if chosen is None:
        raise SourceError(
            f"{field}: {file.name} is not a state dict",
            why=_contents(found, offered),
            fix="save model.state_dict()",
        )
    if not usual and len(offered) > 1:
        raise SourceError(
            f"{field}: {file.name}: it holds the weights of several models",
            why=_contents(found, offered),
            fix="name one of them as source.checkpoint_key",
        )
    return offered[chosen]


def _candidates(value: object, path: str, depth: int = 0) -> Iterator[tuple[str, Weights]]:
    """Every mapping from name to tensor in what a checkpoint holds, by its dotted key."""
    if not isinstance(value, dict) or depth > DEEPEST:
        return
    held = cast("dict[object, object]", value)
    named = {key: item for key, item in held.items() if isinstance(key, str)}
    if named and len(named) == len(held) and _all_tensors(named):
        yield path, cast("Weights", named)
        return
    for key, item in named.items():
        for inner, weights in _candidates(item, f"{path}.{key}" if path else key, depth + 1):
            # `model: {state_dict: …}` is one container in another, not a choice.
            alone = depth == 0 and inner.removeprefix(f"{key}.") in USUAL
            yield (key if alone else inner), weights


def _all_tensors(named: dict[str, object]) -> bool:
    return all(map(_is_tensor, named.values()))


def _is_tensor(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _contents(found: object, offered: dict[str, Weights]) -> str:
    if offered:
        return f"weights are under {', '.join(sorted(key or 'the file itself' for key in offered))}"
    if isinstance(found, dict):
        held = cast("dict[object, object]", found)
        named = [key for key, item in held.items() if _is_tensor(item)]
        odd = [f"{key} ({type(item).__name__})" for key, item in held.items() if key not in named]
        if named and odd:
            return f"beside {len(named)} tensors it holds {', '.join(odd[:20])}"
        shown = [f"{key} ({type(item).__name__})" for key, item in list(held.items())[:20]]
        return f"its keys are {', '.join(shown) or 'none'}; none of them holds named tensors"
    return f"it holds {type(found).__name__}, where a dict from name to tensor is needed"


def fill(module: nn.Module, weights: Weights, file: Path, *, field: str) -> None:
    """Loads the weights, every one of them, under the names that the module has.

    Names that a wrapper prefixed are taken without the prefix. A tensor that the module shares
    under two names may be in the file once.

    Raises: SourceError that lists missing, unexpected and misshapen entries.
    """
    own: dict[str, Any] = module.state_dict(keep_vars=True)
    fitted = min(_renamed(weights), key=lambda named: len(own.keys() ^ named.keys()))
    fitted = _with_shared(own, fitted)
    wrong = [*_conflicts(own, fitted)]
    if not wrong:
        try:
            module.load_state_dict(fitted, strict=True)
        except RuntimeError as error:
            wrong = [line.strip() for line in str(error).splitlines()[1:]]
    if wrong:
        raise SourceError(
            f"{field}: {file.name}: the weights do not fit {type(module).__name__}",
            why="; ".join(wrong)[:600],
            fix="this is one file of several: load them all in source.callable, or save them as "
            "one file"
            if re.search(r"-\d{5}-of-\d{5}\.", file.name)
            else "give the checkpoint of this model, or build it with the arguments that the "
            "checkpoint was trained with (source.arguments)",
        )


def _renamed(weights: Weights) -> Iterator[Weights]:
    """The weights as they are, then without each prefix that all of them have."""
    yield weights
    uncompiled = {name.replace("_orig_mod.", ""): tensor for name, tensor in weights.items()}
    for start in (weights, uncompiled):
        named = start
        yield named
        while prefix := next((p for p in PREFIXES if all(n.startswith(p) for n in named)), None):
            named = {name.removeprefix(prefix): tensor for name, tensor in named.items()}
            yield named


def _with_shared(own: dict[str, Any], weights: Weights) -> Weights:
    """The weights, with the second names of tensors that the module shares."""
    by_tensor = {id(own[name]): tensor for name, tensor in weights.items() if name in own}
    shared = {
        name: by_tensor[id(tensor)]
        for name, tensor in own.items()
        if name not in weights and id(tensor) in by_tensor
    }
    return {**weights, **shared}


def _conflicts(own: dict[str, Any], weights: Weights) -> Iterator[str]:
    """What load_state_dict would copy in silence, though the numbers change."""
    import torch

    kind: Callable[[Tensor], str] = _kind
    first: dict[int, str] = {}
    for name, tensor in weights.items():
        if name not in own:
            continue
        if tensor.is_meta or tensor.layout != torch.strided:
            what = "has no numbers (device meta)" if tensor.is_meta else "is sparse"
            yield f"{name} {what} in the file"
        elif kind(tensor) != kind(own[name]):
            yield f"{name} is {tensor.dtype} in the file and {own[name].dtype} in the model"
        elif (other := first.setdefault(id(own[name]), name)) != name and not _same(
            tensor, weights[other]
        ):
            yield f"{name} and {other} are one tensor in the model and differ in the file"


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether they hold the same numbers. FP8, which torch does not compare, as FP32; NaN too."""
    import torch

    if one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    return bool(torch.isclose(one.float(), other.float(), rtol=0, atol=0, equal_nan=True).all())


def _kind(tensor: Tensor) -> str:
    return "complex" if tensor.is_complex() else "float" if tensor.is_floating_point() else "whole"
