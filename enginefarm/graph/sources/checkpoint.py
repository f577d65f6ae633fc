"""Weights from a file, without running anything that the file says."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from enginefarm.errors import SourceError, UnsafeCheckpointError

if TYPE_CHECKING:
    from torch import Tensor

RUNS_CODE = ("GLOBAL", "Unsupported class", "allowed global")
"""Words of torch's errors for a pickle that names code."""

ADVICE = re.compile(r"Weights only load failed\..*?WeightsUnpickler error: ", re.DOTALL)
"""What torch says before the cause: to load it so that it could run code."""

ENCRYPTED = 0x1
"""The bit of a zip member's flags."""


def read(file: Path, *, field: str) -> Any:
    """What the checkpoint holds: a dict from name to tensor, or the dict around it.

    safetensors by its contents; anything else with `torch.load(weights_only=True)`, which
    builds tensors, plain containers and what HARMLESS lists.

    Raises: UnsafeCheckpointError when it asks for more than that, SourceError when it
    cannot be read.
    """
    _refuse_foreign(file, field=field)
    if file.suffix == ".safetensors" or _looks_like_safetensors(file):
        return _safetensors(file, field)
    _refuse_archive(file, field)
    import torch

    serialization: Any = torch.serialization  # it is typed in part
    try:
        with serialization.safe_globals(_harmless()):
            # Of files in torch's own archive, the pages are mapped rather than copied.
            mapped = zipfile.is_zipfile(file)
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        reason = str(error).replace("\n", " ")
        if any(sign in reason for sign in RUNS_CODE) or _is_pickle(file):
            raise _unsafe(file, field, reason) from None
        raise _unreadable(file, field, reason) from None
    except Exception as error:  # whatever a damaged file makes of the unpickler
        raise _unreadable(file, field, f"{type(error).__name__}: {error}") from error


def _harmless() -> list[Any]:
    """Classes that only hold values, which training scripts save with the weights."""
    from argparse import Namespace
    from pathlib import PosixPath, PurePosixPath

    import numpy as np

    multiarray: Any = import_module("numpy._core.multiarray")
    old = "numpy.core.multiarray"  # the module's name in files from before numpy 2
    made = (multiarray.scalar, multiarray._reconstruct)
    kinds = [getattr(np.dtypes, name) for name in dir(np.dtypes) if name.endswith("DType")]
    return [
        *made,
        *((one, f"{old}.{one.__name__}") for one in made),
        *(np.ndarray, np.dtype, *kinds, Namespace, PosixPath, PurePosixPath),
    ]


def _is_pickle(file: Path) -> bool:
    """Whether Python's own pickler wrote it; other bytes are not a checkpoint."""
    with file.open("rb") as stream:
        return stream.read(1) == pickle.PROTO or zipfile.is_zipfile(file)


def _looks_like_safetensors(file: Path) -> bool:
    with file.open("rb") as stream:
        head = stream.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < file.stat().st_size


def _refuse_archive(file: Path, field: str) -> None:
    """Raises: SourceError for zip archives that torch.load cannot read, and says which."""
    if not zipfile.is_zipfile(file):
        return
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except Exception as error:  # whatever a damaged file makes of zipfile
        raise _unreadable(file, field, str(error)) from error
    if any(member.flag_bits & ENCRYPTED for member in members):
        raise SourceError(
            f"{field}: {file.name}: the archive is encrypted",
            why="reading it needs a password, which a recipe cannot give",
            fix="decrypt it first, and name the decrypted file",
        )
    names = [member.filename for member in members]
    if any("/code/" in f"/{name}" for name in names):
        raise SourceError(
            f"{field}: {file.name}: this is a TorchScript program, not a checkpoint",
            why="it holds code, and enginefarm does not run that",
            fix="if you trust it: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt')",
        )
    if not any(name.rpartition("/")[2] == "data.pkl" for name in names):
        raise SourceError(
            f"{field}: {file.name}: this archive is not a checkpoint",
            why=f"it holds {', '.join(names[:5]) or 'nothing'}",
            fix="name the checkpoint itself; a program of torch.export is kind: exported_program",
        )
    packed = [one.filename for one in members if one.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise SourceError(
            f"{field}: {file.name}: the archive is compressed",
            why=f"torch stores members as they are, and {packed[0]} could be of any size",
            fix="unpack it and save it again with torch.save(model.state_dict(), …)",
        )


def _unsafe(file: Path, field: str, reason: str) -> UnsafeCheckpointError:
    found = re.search(r"GLOBAL ([\w.]+)", reason)
    needs = f"it needs the class or function {found[1]}" if found else _blocked(reason)
    return UnsafeCheckpointError(
        f"{field}: {file.name}: refused, because loading it would run code",
        why=f"{needs}; a whole model or trainer was pickled, rather than its weights",
        fix="save `model.state_dict()` alone, best as .safetensors. If you trust the file and "
        "have its code: torch.save(torch.load(FILE, weights_only=False).state_dict(), OTHER)",
    )


def _unreadable(file: Path, field: str, reason: str) -> SourceError:
    return SourceError(
        f"{field}: {file.name} is not a checkpoint that torch can read",
        why=re.sub(ADVICE, "", reason).partition("  Check the documentation")[0][:300],
        fix="the file may be cut short or of another format: copy it again, or save it again with "
        "torch.save(model.state_dict(), …) or as .safetensors",
    )


def _safetensors(file: Path, field: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise SourceError(
            f"{field}: {file.name} is not a safetensors file",
            why=str(error)[:300],
            fix="the file may be cut short: copy it again",
        ) from error


def _blocked(reason: str) -> str:
    start = reason.find("Unsupported")
    start = start if start >= 0 else reason.find("GLOBAL")
    return reason[max(start, 0) :].split(" Please ")[0].split(". ")[0][:200]


AS_STATE_DICT = "load it in the framework that wrote it, and save it as a PyTorch state dict"
LONGEST_TEXT = 64 << 20
"""Bytes of the largest file that is read to see whether it is JSON."""


class Format(NamedTuple):
    magic: bytes
    name: str
    fix: str


FORMATS = (
    Format(b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes", AS_STATE_DICT),
    Format(
        b"GGUF",
        "a GGUF file, whose weights are quantized for llama.cpp",
        "use the checkpoint that it was made of",
    ),
    Format(b"\x1f\x8b", "a gzip archive", "unpack it, and name the decrypted file"),
    Format(b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it, and name the decrypted file"),
    Format(b"\x93NUMPY", "a NumPy array", AS_STATE_DICT),
    Format(
        b"\x08",
        "an ONNX file",
        "write it as `source: { kind: onnx, path: … }`, without a callable",
    ),
)
PAGE = (b"<!doctype", b"<html", b"<?xml")


def _refuse_foreign(file: Path, *, field: str) -> None:
    """Raises: SourceError for a format of the table, a web page, or JSON."""
    with file.open("rb") as stream:
        head = stream.read(64)
    found = next((row for row in FORMATS if head.startswith(row.magic)), None)
    if found is not None and (len(found.magic) > 1 or file.suffix == ".onnx"):
        raise SourceError(f"{field}: {file.name}: this is {found.name}", fix=found.fix)
    if head.lstrip().lower().startswith(PAGE):
        raise SourceError(
            f"{field}: {file.name}: this is a web page, not a checkpoint",
            why="a download got a page in place of the file, which may need a login",
            fix="download the file itself",
        )
    if head.lstrip().startswith(b"{"):
        _refuse_json(file, field)


def _refuse_json(file: Path, field: str) -> None:
    if file.stat().st_size > LONGEST_TEXT:
        return
    try:
        json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return
    raise SourceError(
        f"{field}: {file.name}: this is a JSON file, not a checkpoint",
        fix="name the file that holds the weights",
    )
