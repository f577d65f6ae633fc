"""A callable that returns an nn.Module, and an optional checkpoint for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from enginefarm.documents.sources import TorchSource
from enginefarm.errors import SourceError
from enginefarm.graph.sources import Local, state_dict
from enginefarm.graph.sources.local_file import file_digest, local_file, named_files
from enginefarm.recipes import import_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from enginefarm.documents.recipe import TensorSpec


class TorchCallable(Local):
    def fingerprint(self, source: TorchSource, root: Path) -> str:
        parts: dict[str, object] = {
            "code": import_path.fingerprint(source.callable, root, field="source.callable"),
            "name": source.callable.partition(":")[2],
            "arguments": dict(source.arguments),
            "depends": [file_digest(path, root, field="source.depends") for path in source.depends],
        }
        if named := named_files(source.arguments, root):
            parts["named_files"] = named
        if source.checkpoint_key is not None:
            parts["checkpoint_key"] = source.checkpoint_key
        if source.checkpoint is not None:
            parts["checkpoint"] = file_digest(source.checkpoint, root, field="source.checkpoint")
        return import_path.digest(parts)

    def load(
        self, source: TorchSource, root: Path, work_dir: Path, inputs: Sequence[TensorSpec] = ()
    ) -> nn.Module:
        from torch import nn

        make = import_path.load(source.callable, root, field="source.callable")
        try:
            module = make(**source.arguments)
        except Exception as error:
            raise SourceError(
                f"source.callable: {source.callable!r} raised {type(error).__name__}",
                why=str(error)[:600],
                fix="it must return an nn.Module when called with source.arguments",
            ) from error
        if not isinstance(module, nn.Module):
            raise SourceError(
                f"source.callable: {source.callable!r} returned {type(module).__name__}",
                fix="it must return an nn.Module",
            )
        if source.checkpoint is not None:
            file = local_file(source.checkpoint, root, field="source.checkpoint")
            weights = state_dict.read(file, field="source.checkpoint", key=source.checkpoint_key)
            state_dict.fill(module, weights, file, field="source.checkpoint")
        return module.eval()
