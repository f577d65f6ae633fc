"""The files of calibration and verification data: one .npz, or a folder of files."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING

from enginefarm.documents.data import Data
from enginefarm.documents.recipe import TensorSpec
from enginefarm.errors import CalibrationError
from enginefarm.graph.sources.local_file import local_file

if TYPE_CHECKING:
    from enginefarm.graph.model.arrays import Array

    Batch = dict[str, Array]


def files(data: Data, root: Path) -> list[Path]:
    """The .npz or .npy file, or the files of the folder in order of name.

    Raises: CalibrationError.
    """
    assert data.path is not None
    path = root / data.path
    if path.is_dir():
        named = (file for file in path.iterdir() if file.suffix in (".npz", ".npy"))
        found = sorted(file for file in named if file.is_file())  # a pipe would block
        if found:
            return found
        raise CalibrationError(
            f"data.path: the folder {data.path} has no .npz or .npy file",
            fix="write one file for each batch with numpy.savez, or read its files in a callable: "
            "`data: { callable: data.py:batches }`",
        )
    if "://" in data.path:
        raise CalibrationError(
            f"data.path: {data.path} is not a file",
            why="data is read from the recipe's folder",
            fix="download it there, or read it in a callable: "
            "`data: { callable: data.py:batches }`",
        )
    local_file(data.path, root, field="data.path", error=CalibrationError)
    if path.suffix not in (".npz", ".npy"):
        raise CalibrationError(
            f"data.path: {data.path} is neither an .npz or .npy file nor a folder of them",
            fix="write it with numpy.savez(FILE, NAME=array), an array for each of the inputs, or "
            "read it in a callable: `data: { callable: data.py:batches }`",
        )
    return [path]


def from_folder(files: Sequence[Path], inputs: Sequence[TensorSpec]) -> Iterator[Batch]:
    """Each file is a batch; an .npy is for a model with one input. Raises: CalibrationError."""
    import numpy as np

    for file in files:
        try:
            found = np.load(file, allow_pickle=False)
            if file.suffix == ".npz":
                with found:
                    yield dict(found)
            else:
                yield {_only_input(file, inputs): found}
        except CalibrationError:
            raise
        except Exception as error:  # whatever a damaged file makes of numpy and zipfile
            raise _unreadable(file, error) from error


def _only_input(file: Path, inputs: Sequence[TensorSpec]) -> str:
    if len(inputs) == 1:
        return inputs[0].name
    raise CalibrationError(
        f"data.path: {file.name} has one array for {len(inputs)} inputs",
        fix="write .npz files, with a key for each input",
    )


def from_file(file: Path, inputs: Sequence[TensorSpec], batch_size: int) -> Iterator[Batch]:
    """Cuts every array of the file along its first axis, reading as it goes.

    Raises: CalibrationError.
    """
    try:
        with ExitStack() as opened:
            if file.suffix == ".npy":
                name = _only_input(file, inputs)
                streams = {name: _Samples(opened.enter_context(file.open("rb")), file.name)}
            else:
                archive = opened.enter_context(zipfile.ZipFile(file))
                streams = {
                    name.removesuffix(".npy"): _Samples(archive.open(name), name)
                    for name in archive.namelist()
                }
            counts = {name: stream.count for name, stream in streams.items()}
            if len(set(counts.values())) > 1:
                raise CalibrationError(
                    f"data.path: {file.name}: the arrays have different numbers of samples",
                    why=", ".join(f"{name}: {count}" for name, count in counts.items()),
                    fix="the first axis counts the samples, and must be equal for every array",
                )
            while streams and all(stream.count for stream in streams.values()):
                yield {name: stream.take(batch_size) for name, stream in streams.items()}
    except CalibrationError:
        raise
    except Exception as error:  # whatever a damaged file makes of numpy and zipfile
        raise _unreadable(file, error) from error


def add_array(archive: zipfile.ZipFile, name: str, array: Array) -> None:
    """Writes the array into an .npz as numpy.savez does, with the same bytes at any time."""
    import numpy as np

    # ZipInfo's own date is fixed: the bytes do not depend on the clock.
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as stream:
        # not ascontiguousarray, which turns a scalar into one dim
        np.lib.format.write_array(stream, np.asarray(array, order="C"), allow_pickle=False)


class _Samples:
    """One array of a file, read a few samples at a time."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        import numpy as np

        self._stream = stream
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
            version, np.lib.format.read_array_header_2_0
        )
        sizes, fortran, self._dtype = read(stream)
        shape = [int(size) for size in sizes]
        if self._dtype.hasobject:
            raise ValueError(f"{name} holds Python objects")
        if not shape or min(shape) < 0:
            raise ValueError(f"{name} has the shape {sizes}: it has no first axis to cut")
        self.count, *self._shape = shape
        self._whole: Array | None = None
        if fortran and len(shape) > 1:  # its samples do not follow one another in the file
            axes = range(len(shape))[::-1]
            backwards = self._read(math.prod(shape)).reshape(shape[::-1])
            self._whole = np.ascontiguousarray(backwards.transpose(axes))

    def take(self, samples: int) -> Array:
        samples = min(samples, self.count)
        self.count -= samples
        if self._whole is not None:
            taken, self._whole = self._whole[:samples], self._whole[samples:]
            return taken
        return self._read(samples * math.prod(self._shape)).reshape(samples, *self._shape)

    def _read(self, numbers: int) -> Array:
        import numpy as np

        data = self._stream.read(numbers * self._dtype.itemsize)
        if len(data) < numbers * self._dtype.itemsize:
            raise EOFError("the file ends early")
        return np.frombuffer(data, self._dtype)


def _unreadable(file: Path, error: BaseException) -> CalibrationError:
    return CalibrationError(
        f"data.path: {file.name} cannot be read",
        why=f"{type(error).__name__}: {error}"[:300],
        fix="write it again with numpy.savez; arrays of objects are refused",
    )
