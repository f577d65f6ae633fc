"""A callable that returns an nn.Module, and an optional checkpoint for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginefarm.documents.sources import TorchSource
from enginefarm.errors import SourceError
from enginefarm.graph.sources import Loaded, Local, checkpoint_files, forward, state_dict
from enginefarm.graph.sources.local_file import depends_digests, named_files
from enginefarm.recipes import import_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from enginefarm.documents.recipe import TensorSpec


QUANTIZED = (
    *("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized"),
    *("torch.ao.nn.qat", "torch.ao.nn.intrinsic.qat", "torch.ao.quantization.fake_quantize"),
)
"""Where the modules are that torch.ao.quantization puts in place of float ones, or in them."""


class TorchCallable(Local):
    def fingerprint(self, source: TorchSource, root: Path) -> str:
        parts: dict[str, object] = {
            "code": import_path.fingerprint(source.callable, root, field="source.callable"),
            "name": source.callable.partition(":")[2],
            "arguments": dict(source.arguments),
            "depends": depends_digests(source.depends, root, field="source.depends"),
        }
        if named := named_files(source.arguments, root):
            parts["named_files"] = named
        if source.checkpoint_key is not None:
            parts["checkpoint_key"] = source.checkpoint_key
        if source.checkpoint is not None:
            parts["checkpoint"] = checkpoint_files.digests(
                source.checkpoint, root, field="source.checkpoint"
            )
        return import_path.digest(parts)

    def load(
        self, source: TorchSource, root: Path, work_dir: Path, inputs: Sequence[TensorSpec] = ()
    ) -> Loaded:
        import torch
        from torch import nn

        # An earlier load in this process may have set them.
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        make = import_path.load(source.callable, root, field="source.callable")
        if isinstance(make, nn.Module):
            raise SourceError(
                f"source.callable: {source.callable!r} is an nn.Module, not a function",
                fix="name a function that makes and returns it",
            )
        try:
            module = make(**source.arguments)
        except Exception as error:
            raise SourceError(
                f"source.callable: {source.callable!r} raised {type(error).__name__}",
                why=str(error)[:600],
                fix=_fix(error),
            ) from error
        if not isinstance(module, nn.Module):
            raise SourceError(
                f"source.callable: {source.callable!r} returned {type(module).__name__}",
                fix="it must return an nn.Module",
            )
        _refuse_unexportable(module, source.callable)
        if "torch._dynamo" in sys.modules:  # something may be compiled, which takes minutes
            torch.compiler.set_stance("force_eager")
        notes: tuple[str, ...] = ()
        if source.checkpoint is not None:
            files = checkpoint_files.find(source.checkpoint, root, field="source.checkpoint")
            weights = state_dict.read(files, field="source.checkpoint", key=source.checkpoint_key)
            notes = state_dict.fill(module, weights, files.file, field="source.checkpoint")
        _refuse_meta(module, source.callable)
        return Loaded(module.eval(), notes)


def _refuse_meta(module: nn.Module, callable_: str) -> None:
    """Raises: SourceError for weights that have a shape and no numbers."""
    named: Any = module.state_dict(keep_vars=True) | dict(module.named_buffers())
    empty = [name for name, value in named.items() if value.is_meta]
    if empty:
        raise SourceError(
            f"source.callable: {callable_!r} returned a module whose tensors have no values",
            why=f"these are on the device `meta`: {', '.join(empty[:5])}"
            + (", …" if empty[5:] else ""),
            fix="make the module on the CPU, or name its weights as source.checkpoint; buffers "
            "that are not in the checkpoint have to be made on the CPU",
        )


def _fix(error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and not Path(str(error.filename or "/")).is_absolute():
        return (
            "it runs in another folder: give the file's path as one of source.arguments, or "
            f"open Path(__file__).with_name({Path(error.filename).name!r}) and list the file in "
            "source.depends, so that a change of it builds again"
        )
    return forward.on_a_cpu(error) or (
        "it must return an nn.Module when called with source.arguments"
    )


def _kind(part: object) -> type[object]:
    return type(part)


def _refuse_unexportable(module: nn.Module, callable_: str) -> None:
    """Raises: SourceError for modules that torch.export refuses without saying why."""
    import torch

    named: Any = module  # whose functions are typed in part
    for name, part in named.named_modules():
        what = f"source.callable: {callable_!r} returned " + (
            f"a module whose {name}" if name else "a module that"
        )
        kind = _kind(part)
        if isinstance(part, torch.jit.ScriptModule):
            raise SourceError(
                f"{what} is TorchScript ({kind.__name__})",
                why="PyTorch exports Python modules, not TorchScript",
                fix="return the nn.Module from before torch.jit.script or torch.jit.trace; "
                "TorchScript's weights are its state_dict()",
            )
        if kind.__module__.startswith(QUANTIZED):
            raise SourceError(
                f"{what} is quantized ({kind.__module__}.{kind.__name__})",
                why="its weights are packed or rounded for a CPU, and torch.onnx has no such "
                "operators",
                fix="return the float model, and let `precisions: [int8]` quantize it",
            )
