"""Which of a checkpoint's values are the model's weights, and how they get into the module."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from enginefarm.errors import SourceError
from enginefarm.graph.sources import checkpoint
from enginefarm.graph.sources.checkpoint_files import CheckpointFiles

if TYPE_CHECKING:
    from torch import Tensor, nn

    Weights = dict[str, Tensor]

USUAL = ("state_dict", "model", "model_state_dict", "module")
"""Where training scripts put the weights, the first of them first."""

DEEPEST = 3


def read(files: CheckpointFiles, *, field: str, key: str | None = None) -> Weights:
    """The weights in the checkpoint, wherever it holds them.

    key: the recipe's `checkpoint_key`, for a checkpoint that holds several models' weights: where
    they are, or what their names begin with.
    Raises: as `checkpoint.read`; SourceError that lists the keys when there is not one choice.
    """
    file = files.file
    found: Any = _shards(files, field) if files.shards else checkpoint.read(file, field=field)
    offered = dict(_candidates(found, ""))
    if key is not None:
        if key in offered:
            return offered[key]
        under = [_under(f"{key}.", weights) for weights in offered.values()]
        if sum(map(bool, under)) == 1:
            return next(filter(None, under))
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
            return f"in addition to {len(named)} tensors it holds {', '.join(odd[:20])}"
        shown = [f"{key} ({type(item).__name__})" for key, item in list(held.items())[:20]]
        return f"its keys are {', '.join(shown) or 'none'}; none of them holds named tensors"
    return f"it holds {type(found).__name__}, where a dict from name to tensor is needed"


def _shards(files: CheckpointFiles, field: str) -> Weights:
    """The tensors of all shards; the pages of their files, rather than copies, where they allow it.

    Raises: SourceError for a shard that holds other tensors than its index says.
    """
    found: Weights = {}
    for shard, named in files.shards.items():
        held: Any = checkpoint.read(shard, field=field)
        if not (isinstance(held, dict) and _all_tensors(cast("dict[str, object]", held))):
            raise SourceError(
                f"{field}: {shard.name} is not a shard of a checkpoint",
                why=_contents(cast("object", held), {}),
                fix=f"copy the file that {files.file.name} names again",
            )
        weights = cast("Weights", held)
        if wrong := sorted(named ^ weights.keys()):
            raise SourceError(
                f"{field}: {shard.name}: it holds other tensors than {files.file.name} says",
                why=f"{len(wrong)} differ: {', '.join(wrong[:5])}",
                fix="the index and its shards are of two models: copy all of them again",
            )
        found |= weights
    return found


def fill(module: nn.Module, weights: Weights, file: Path, *, field: str) -> tuple[str, ...]:
    """Loads the weights under the names that the module has, and returns notes on the others.

    Names that a wrapper prefixed are taken without the prefix, where everything under one prefix
    is exactly what the module has. Names beside it belong to something else, such as the loss, and
    are in the notes. A tensor that the module shares under two names may be in the file once.

    Raises: SourceError that lists missing, unexpected and misshapen entries, or the prefixes where
    several would do.
    """
    own: dict[str, Any] = module.state_dict(keep_vars=True)
    closest = _closest(own, weights)
    wrong = {prefix: _load(module, own, part) for prefix, part in closest.items()}
    fits = [prefix for prefix, reasons in wrong.items() if not reasons]
    name = type(module).__name__
    if len(fits) > 1:
        raise SourceError(
            f"{field}: {file.name}: it holds the weights of several models that fit {name}",
            why=f"they are under {', '.join(fits)}",
            fix=f"name one of them: source.checkpoint_key: {fits[0].rstrip('.')}",
        )
    if not fits:
        prefix, reasons = next(iter(wrong.items()))
        under = f"of what is under {prefix}: " if prefix else ""
        raise SourceError(
            f"{field}: {file.name}: the weights do not fit {name}",
            why=(under + "; ".join(reasons))[:600],
            fix="this is one file of several: name its index (….index.json) or its folder instead"
            if re.search(r"-\d{5}-of-\d{5}\.", file.name)
            else "give the checkpoint of this model, or build it with the arguments that the "
            "checkpoint was trained with (source.arguments)",
        )
    if len(closest) > 1:  # the last one that was tried may have been copied in part
        _load(module, own, closest[fits[0]])
    return _left_over(fits[0], weights, file)


def _load(module: nn.Module, own: dict[str, Any], weights: Weights) -> list[str]:
    """Copies the weights into the module; returns why they do not fit, if they do not."""
    whole = _with_shared(own, weights)
    wrong = [*_conflicts(own, whole)]
    if not wrong:
        # A tensor on the device meta has no numbers to copy into.
        assign = any(value.is_meta for value in own.values())
        if assign:
            whole = {
                name: value.to(own[name].dtype) if name in own else value
                for name, value in whole.items()
            }
        try:
            module.load_state_dict(whole, strict=True, assign=assign)
        except RuntimeError as error:
            wrong = [line.strip() for line in str(error).splitlines()[1:]]
    return wrong


COMPILED = "_orig_mod."
"""What torch.compile puts before the names of the module that it wraps, at any depth."""


def _closest(own: dict[str, Any], weights: Weights) -> dict[str, Weights]:
    """The parts of the weights whose names differ least from the module's, by their prefix."""
    found: dict[str, Weights] = {}
    if any(COMPILED in name for name in weights) and not any(COMPILED in name for name in own):
        weights = {name.replace(COMPILED, ""): tensor for name, tensor in weights.items()}
    for name in weights:
        parts = name.split(".")
        for depth in range(len(parts)):
            prefix = "".join(f"{part}." for part in parts[:depth])
            if prefix not in found and name[len(prefix) :] in own:
                part = _under(prefix, weights)
                # One of a list of layers is not the model, unless it is all that there is.
                if len(part) == len(weights) or not any(map(str.isdigit, parts[:depth])):
                    found[prefix] = part
    found = found or {"": weights}
    missed = {prefix: len(own.keys() ^ part.keys()) for prefix, part in found.items()}
    return {prefix: found[prefix] for prefix in found if missed[prefix] == min(missed.values())}


def _under(prefix: str, weights: Weights) -> Weights:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }


def _left_over(prefix: str, weights: Weights, file: Path) -> tuple[str, ...]:
    names = [name for name in weights if not name.replace(COMPILED, "").startswith(prefix)]
    if not names:
        return ()
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    others = "1 other in it is" if len(names) == 1 else f"{len(names)} others in it are"
    return (f"the weights are what {file.name} has under {prefix}; {others} not used: {shown}",)


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
