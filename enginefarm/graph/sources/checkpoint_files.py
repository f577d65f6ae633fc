"""The files that a checkpoint consists of: one, or an index and its shards, perhaps in a folder.

Hugging Face writes `model.safetensors`, or `model.safetensors.index.json` and the shards that its
`weight_map` names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple, cast

from enginefarm.digest import sha256_file
from enginefarm.errors import SourceError
from enginefarm.graph.sources.local_file import local_file
from enginefarm.schema import can_be_a_file

IN_A_FOLDER = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"),
    ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.bin.index.json"),
)
"""What transformers and diffusers call the weights of a folder, in the order of preference; of
each pair, only one may be there."""

LONGEST_INDEX = 64 << 20
"""Bytes of the largest index that is read."""


class CheckpointFiles(NamedTuple):
    """file: the checkpoint, or the index of its shards. shards: the names of the tensors in each
    file that an index names; empty for a checkpoint that is one file."""

    file: Path
    shards: dict[Path, frozenset[str]]


def find(path: str, root: Path, *, field: str) -> CheckpointFiles:
    """The files behind a recipe's `checkpoint`, which is a file, an index or a folder.

    Imports no torch. Raises: SourceError, naming each file that is missing.
    """
    file = local_file(_in_folder(path, root, field), root, field=field)
    named = _weight_map(file, field)
    missing = [name for name in named if not (file.parent / name).exists()]
    if missing:
        raise SourceError(
            f"{field}: {file.name}: {', '.join(missing[:5])} "
            + ("does not exist" if len(missing) == 1 else "do not exist"),
            why="the weights are in the files that the index names",
            fix="copy all of them next to the index",
        )
    where = f"{field}: {file.name}"
    return CheckpointFiles(
        file,
        {
            local_file(name, file.parent, field=where): frozenset(tensors)
            for name, tensors in named.items()
        },
    )


def digests(path: str, root: Path, *, field: str) -> str | dict[str, str]:
    """sha256 of the checkpoint; of each file by its name where it consists of several.

    Raises: as `find`.
    """
    found = find(path, root, field=field)
    whole = sha256_file(found.file)
    if not found.shards:
        return whole
    return {found.file.name: whole} | {file.name: sha256_file(file) for file in found.shards}


def _in_folder(path: str, root: Path, field: str) -> str:
    """The path; for a folder, that of the weights in it."""
    folder = root / path
    try:
        if not path or not folder.is_dir():
            return path
        held = sorted(file.name for file in folder.iterdir())
    except (OSError, ValueError):
        return path
    for pair in IN_A_FOLDER:
        found = [name for name in pair if name in held]
        if len(found) == 1:
            return f"{path}/{found[0]}"
        if found:
            raise SourceError(
                f"{field}: {path}: the folder has {found[0]} and {found[1]}",
                why="both are the weights of a model, and they may be of different ones",
                fix=f"name one of them: {path.rstrip('/')}/{found[0]}",
            )
    raise SourceError(
        f"{field}: {path}: it is a folder without a checkpoint that Hugging Face would write",
        why=f"it holds {', '.join(held[:10]) or 'nothing'}",
        fix="name the file that holds the weights. A folder of torch.distributed.checkpoint becomes"
        " a file with `python -m torch.distributed.checkpoint.format_utils dcp_to_torch DIR FILE`",
    )


def _weight_map(file: Path, field: str) -> dict[str, list[str]]:
    """The tensors of each shard that the file names; empty when it is not an index."""
    with file.open("rb") as stream:
        if not stream.read(64).lstrip().startswith(b"{"):
            return {}
    if file.stat().st_size > LONGEST_INDEX:
        return {}
    try:
        document: object = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return {}
    found = cast("dict[str, object]", document).get("weight_map") if _is_dict(document) else None
    if not _is_dict(found):
        return {}
    named: dict[str, list[str]] = {}
    for tensor, shard in cast("dict[str, object]", found).items():
        if not (isinstance(shard, str) and can_be_a_file(shard)) or (
            shard != Path(shard).name or shard in ("", file.name)
        ):
            raise SourceError(
                f"{field}: {file.name}: its weight_map has {shard!r} for {tensor}",
                why="the files of a checkpoint are next to its index",
                fix="save the model again with save_pretrained",
            )
        named.setdefault(shard, []).append(tensor)
    return named


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)
