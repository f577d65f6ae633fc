"""A Lightning checkpoint: hyperparameters and weights, read without Lightning itself.

The format is Lightning's own: `hyper_parameters` are the keyword arguments that
`save_hyperparameters()` noted, `state_dict` the weights.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from enginefarm.documents.sources import LightningSource
from enginefarm.errors import SourceError
from enginefarm.graph.sources import Loaded, Local, checkpoint, state_dict
from enginefarm.graph.sources.local_file import file_digest, local_file
from enginefarm.recipes import import_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from enginefarm.documents.recipe import TensorSpec


class Lightning(Local):
    def fingerprint(self, source: LightningSource, root: Path) -> str:
        return import_path.digest(
            {
                "code": import_path.fingerprint(source.module, root, field="source.module"),
                "name": source.module.partition(":")[2],
                "checkpoint": file_digest(source.checkpoint, root, field="source.checkpoint"),
            }
        )

    def load(
        self, source: LightningSource, root: Path, work_dir: Path, inputs: Sequence[TensorSpec] = ()
    ) -> Loaded:
        from torch import nn

        file = local_file(source.checkpoint, root, field="source.checkpoint")
        found = checkpoint.read(file, field="source.checkpoint")
        parts = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
        if not isinstance(parts.get("state_dict"), dict):
            raise SourceError(
                f"source.checkpoint: {file.name} is not a Lightning checkpoint",
                why="it has no `state_dict`",
                fix="give the file that Trainer.save_checkpoint wrote, or use kind: torch",
            )
        kind = import_path.load(source.module, root, field="source.module")
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise SourceError(
                f"source.module: {source.module!r} is not a LightningModule class",
                fix="name the class whose checkpoint this is",
            )
        module = _make(kind, _plain(parts.get("hyper_parameters")), source.module)
        notes = state_dict.fill(module, parts["state_dict"], file, field="source.checkpoint")
        return Loaded(module.eval(), notes)


def _plain(hyper_parameters: object) -> dict[str, Any]:
    """As a dict, also where the training script kept an argparse.Namespace."""
    if isinstance(hyper_parameters, dict):
        return cast("dict[str, Any]", hyper_parameters)
    return {} if hyper_parameters is None else {**vars(hyper_parameters)}


def _make(kind: type[Any], hyper_parameters: dict[str, Any], name: str) -> nn.Module:
    parameters = inspect.signature(kind.__init__).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    arguments = {
        key: value for key, value in hyper_parameters.items() if takes_any or key in parameters
    }
    try:
        return kind(**arguments)
    except Exception as error:
        raise SourceError(
            f"source.module: {name!r} cannot be built from the checkpoint's hyper_parameters",
            why=f"{type(error).__name__}: {error}"[:400],
            fix="call self.save_hyperparameters() in __init__ before training, so that the "
            "checkpoint carries every argument",
        ) from error
