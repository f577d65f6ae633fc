"""A torch.export program in a .pt2 file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from enginefarm.documents.sources import ExportedProgramSource
from enginefarm.errors import SourceError
from enginefarm.graph.sources import Loaded, Local, pt2
from enginefarm.graph.sources.local_file import file_digest, local_file
from enginefarm.recipes import import_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from enginefarm.documents.recipe import TensorSpec


class ExportedProgramFile(Local):
    def fingerprint(self, source: ExportedProgramSource, root: Path) -> str:
        return import_path.digest({"program": file_digest(source.path, root, field="source.path")})

    def load(
        self,
        source: ExportedProgramSource,
        root: Path,
        work_dir: Path,
        inputs: Sequence[TensorSpec] = (),
    ) -> Loaded:
        import torch

        file = local_file(source.path, root, field="source.path")
        program = pt2.checked_copy(file, work_dir / "program.pt2")
        try:
            loaded = torch.export.load(program)
        except Exception as error:
            raise SourceError(
                f"source.path: {source.path} is not a program that torch.export can load",
                why=f"{type(error).__name__}: {error}"[:400],
                fix="save it with torch.export.save, with a torch no newer than this one "
                f"({torch.__version__})",
            ) from error
        for place, output in enumerate(loaded.graph_signature.user_outputs):
            if output is not None and not isinstance(output, str):  # the value, and not its name
                raise SourceError(
                    f"source.path: {source.path}: output {place} of the program is {output!r}",
                    why="an engine returns tensors, and this value is the same for every input",
                    fix="export a forward that returns tensors only",
                )
        return Loaded(loaded)
