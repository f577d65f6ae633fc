"""Weights from a file, without running anything that the file says."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from enginefarm.digest import sha256_file
from enginefarm.errors import SourceError, UnsafeCheckpointError

if TYPE_CHECKING:
    from torch import Tensor


def local_file(path: str, root: Path, *, field: str) -> Path:
    """The file, relative to the recipe.

    Raises: SourceError when there is none, or it is empty.
    """
    file = root / path
    if not file.is_file():
        raise SourceError(
            f"{field}: {path}: no such file",
            why=f"looked for {file}",
            fix="the path is taken relative to the recipe's folder",
        )
    if file.stat().st_size == 0:
        raise SourceError(f"{field}: {path}: the file is empty", fix="copy it again")
    return file


def file_digest(path: str, root: Path, *, field: str) -> str:
    return sha256_file(local_file(path, root, field=field))


def read(file: Path, *, field: str) -> Any:
    """What the checkpoint holds: a dict from name to tensor, or the dict around it.

    safetensors by its suffix; anything else with `torch.load(weights_only=True)`, which
    builds tensors and plain containers only.

    Raises: UnsafeCheckpointError when it asks for more than that, SourceError when it
    cannot be read.
    """
    if file.suffix == ".safetensors":
        return _safetensors(file, field)
    import torch

    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).replace("\n", " ")
        if "Unsupported" in reason or "not an allowed global" in reason or "GLOBAL" in reason:
            raise UnsafeCheckpointError(
                f"{field}: {file.name}: refused, loading it would run code",
                why=_blocked(reason),
                fix="save `model.state_dict()` alone, best as .safetensors",
            ) from None
        raise SourceError(
            f"{field}: {file.name}: not a checkpoint that torch can read",
            why=reason[:300],
            fix="save it again with torch.save(model.state_dict(), …) or as .safetensors",
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        raise SourceError(
            f"{field}: {file.name}: not a checkpoint that torch can read",
            why=f"{type(error).__name__}: {error}"[:300],
            fix="the file may be cut short: copy it again",
        ) from error


def state_dict(file: Path, *, field: str) -> dict[str, Tensor]:
    """The state dict in the file; one level of `state_dict`/`model` around it is taken off.

    Raises: as `read`; SourceError when it is not a dict of tensors.
    """
    import torch

    found: Any = read(file, field=field)
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(cast("dict[str, Any]", found).get(key), dict):
            found = cast("dict[str, Any]", found)[key]
    weights = cast("dict[str, Any]", found)
    if not isinstance(found, dict) or not all(
        isinstance(value, torch.Tensor) for value in weights.values()
    ):
        raise SourceError(
            f"{field}: {file.name}: not a state dict",
            why=f"it holds {type(weights).__name__}, where a dict from name to tensor is needed",
            fix="save model.state_dict()",
        )
    return weights


def fill(module: Any, weights: dict[str, Any], file: Path, *, field: str) -> None:
    """Loads the weights, strictly.

    Raises: SourceError that lists missing, unexpected and misshapen entries.
    """
    try:
        module.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise SourceError(
            f"{field}: {file.name}: the weights do not fit {type(module).__name__}",
            why="; ".join(lines)[:600],
            fix="give the checkpoint of this very model, or the arguments it was made with",
        ) from None


def _safetensors(file: Path, field: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise SourceError(
            f"{field}: {file.name}: not a safetensors file",
            why=str(error)[:300],
            fix="the file may be cut short: copy it again",
        ) from error


def _blocked(reason: str) -> str:
    start = reason.find("Unsupported")
    start = start if start >= 0 else reason.find("GLOBAL")
    return reason[max(start, 0) :].split(" Please ")[0].split(". ")[0][:200]
