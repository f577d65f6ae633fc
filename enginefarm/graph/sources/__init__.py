"""Where a model comes from, a file each behind one Protocol.

Importing this package imports neither torch nor onnx; `fingerprint` never does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from enginefarm.documents.sources import SOURCES
from enginefarm.names import loaded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn
    from torch.export import ExportedProgram

    from enginefarm.documents.recipe import TensorSpec

    LoadedModel = nn.Module | ExportedProgram | Path
    """A module in eval mode, an exported program, or the path of an ONNX file."""


class Loaded(NamedTuple):
    """notes: what a person has to know of how it was read, such as weights that it does not use."""

    model: LoadedModel
    notes: tuple[str, ...] = ()


class Source(Protocol):
    """One kind of source. `source` is the recipe's part of that kind."""

    def fingerprint(self, source: Any, root: Path) -> str:
        """sha256 of everything that decides the model: code, versions, weights, arguments.

        Cheap enough to run for every plan: files are hashed, nothing is imported.
        Raises: SourceError when a file is not there.
        """
        ...

    def inputs(self, source: Any, root: Path) -> tuple[str, ...] | None:
        """Names of the model's inputs where its file says them. None: only `load` finds out.

        Cheap enough for `plan`: a child process reads the file, and no weights outside it.
        Raises: SourceError when the file is not a model.
        """
        ...

    def fetch(self, source: Any, work_dir: Path) -> None:
        """Brings what is not on this machine into `work_dir`, with the caller's credentials.

        Raises: SourceError, StoreError.
        """
        ...

    def load(
        self, source: Any, root: Path, work_dir: Path, inputs: Sequence[TensorSpec] = ()
    ) -> Loaded:
        """The model itself, and notes on it. `work_dir` has what `fetch` brought, and takes what
        `load` writes.

        inputs: the recipe's, for a file that does not say what its own inputs are.
        It runs the recipe's code and opens its files: call it in a child process.

        Raises: SourceError, UnsafeCheckpointError.
        """
        ...


class Local:
    """The base of sources whose files are all on this machine, and say nothing of inputs."""

    def inputs(self, source: Any, root: Path) -> tuple[str, ...] | None:
        """Only the loaded model has them."""
        return None

    def fetch(self, source: Any, work_dir: Path) -> None:
        """Nothing is to be fetched."""


def source(kind: str) -> Source:
    """The source of that kind; the recipe has already checked that there is one."""
    made: Source = loaded(SOURCES[kind])()
    return made
