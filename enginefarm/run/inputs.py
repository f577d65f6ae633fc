"""Arrays for `run_once`: read from files, or seeded random; and outputs, written to a file."""

from __future__ import annotations

import errno
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginefarm.documents.data import Data
from enginefarm.documents.manifest import Manifest
from enginefarm.documents.recipe import TensorSpec
from enginefarm.errors import UsageError
from enginefarm.graph.samples import data, data_files
from enginefarm.run.single_run import NPY
from enginefarm.store.disk import appearing, writing

if TYPE_CHECKING:
    from enginefarm.graph.model.arrays import Arrays


def read_feeds(given: Sequence[str], manifest: Manifest) -> Arrays:
    """Arrays by input name, from `FILE.npz` (its names), `NAME=FILE.npy`, or `FILE.npy` where the
    engine has one input.

    Raises: UsageError, which names the file.
    """
    inputs = [tensor.name for tensor in manifest.tensors if tensor.role == "input"]
    feeds: Arrays = {}
    for text in given:
        for name, array in _read(text, inputs).items():
            if name in feeds:
                raise UsageError(f"run --input {text}: {name} is given twice", fix="give it once")
            feeds[name] = array
    return feeds


def _read(text: str, inputs: Sequence[str]) -> Arrays:
    name, is_named, file = text.partition("=")
    if not is_named or Path(text).is_file():
        name, file = "", text
    path = Path(file)
    if path.suffix == ".npz":
        if name:
            raise UsageError(
                f"run --input {text}: an .npz has the names of its arrays",
                fix=f"--input {file}",
            )
        found = _load(path)
        return dict(found)
    if path.suffix != NPY:
        raise UsageError(
            f"run --input {text}: {file} is neither .npy nor .npz",
            fix="write the arrays with numpy.save or numpy.savez",
        )
    if not name and len(inputs) != 1:
        raise UsageError(
            f"run --input {text}: which input is it?",
            why=f"the engine's inputs are {', '.join(inputs)}",
            fix=f"--input {inputs[0]}={file}",
        )
    return {name or inputs[0]: _load(path)}


def _load(path: Path) -> Any:
    """An array, or a dict of them, all read. Nothing is unpickled. Raises: UsageError."""
    import numpy as np

    try:
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "it is not a regular file")
        found = np.load(path, allow_pickle=False)
        if path.suffix == NPY:
            return np.asarray(found)
        with found:
            return {name: np.asarray(found[name]) for name in found.files}
    except Exception as error:  # whatever a damaged file makes of numpy and zipfile
        raise UsageError(
            f"run --input: {path} cannot be read",
            why=getattr(error, "strerror", None) or f"{type(error).__name__}: {error}",
            fix="write it with numpy.save or numpy.savez, without objects",
        ) from error


def random_feeds(manifest: Manifest, *, profile: str | None, seed: int) -> Arrays:
    """Seeded random inputs at a profile's optimal shapes; the first profile by default.

    Floats are of a normal distribution, whole numbers from 0 to 9, as in `build` without data.
    Raises: UsageError for an unknown profile, and for an input whose values are sizes.
    """
    named = {one.name: one for one in manifest.spec.profiles}
    chosen = named.get(profile) if profile else manifest.spec.profiles[0]
    if chosen is None:
        raise UsageError(
            f"run --profile: the engine has no profile {profile!r}",
            fix=f"its profiles are {', '.join(named)}",
        )
    specs: list[TensorSpec] = []
    for tensor in manifest.tensors:
        if tensor.role != "input":
            continue
        if tensor.is_shape_tensor:
            raise UsageError(
                f"run: the values of input {tensor.name!r} are sizes, and cannot be random",
                fix=f"give every input: --input {tensor.name}=FILE.npy …",
            )
        bounds = chosen.shapes.get(tensor.name)
        shape = bounds.opt if bounds else tensor.shape
        specs.append(TensorSpec(name=tensor.name, dtype=tensor.dtype, shape=shape))
    made = data.batches(
        Data(random=True), root=Path(), inputs=specs, batches=1, batch_size=1, seed=seed
    )
    return next(made)


def write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """An `.npz` that numpy.load reads, whatever the tensors are called. Raises: DiskFull."""
    with writing(path), appearing(path) as part, zipfile.ZipFile(part, "w") as archive:
        for name, array in arrays.items():
            data_files.add_array(archive, name, array)
