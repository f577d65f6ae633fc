"""Batches of arrays for calibration and verification, streamed and checked one by one."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from enginefarm.digest import sha256_files
from enginefarm.documents.data import Calibration, Data, Verification
from enginefarm.documents.recipe import Recipe, TensorSpec
from enginefarm.errors import CalibrationError, one_line
from enginefarm.graph.samples import data_files
from enginefarm.graph.sources.local_file import depends_digests, named_files
from enginefarm.recipes import import_path

if TYPE_CHECKING:
    from enginefarm.graph.samples.data_files import Array, Batch


def batches(
    data: Data,
    *,
    root: Path,
    inputs: Sequence[TensorSpec],
    batches: int,
    batch_size: int,
    seed: int,
) -> Iterator[Batch]:
    """At most `batches` dicts from input name to array, and the labels under their own key.

    One batch is in memory at a time. A callable without a `batch_size` sets its own sizes; a
    folder's files are the batches; an `.npz` is cut along its first axis.

    Raises: CalibrationError that names the source, the batch and the tensor.
    """
    count = 0
    for batch in _raw(data, root, inputs, batch_size, seed):
        yield _checked(batch, data, inputs, f"{_name(data)}: batch {count}")
        count += 1
        if count == batches:
            return
    if count == 0:
        raise CalibrationError(
            f"{_name(data)}: it has no samples",
            fix="representative samples are needed: a few hundred of them for calibration",
        )


def verification_batches(recipe: Recipe) -> Iterator[Batch]:
    """The batches that the recipe verifies on, as `batches` reads them."""
    return _batches_of(recipe, recipe.verification_data, recipe.verification)


def calibration_batches(recipe: Recipe) -> Iterator[Batch]:
    """The batches that the recipe calibrates on, as `batches` reads them."""
    if recipe.calibration is None:
        raise CalibrationError("calibration: the recipe has none", fix="add `calibration`")
    return _batches_of(recipe, recipe.calibration.data, recipe.calibration)


def _batches_of(recipe: Recipe, data: Data, use: Calibration | Verification) -> Iterator[Batch]:
    return batches(
        data,
        root=recipe.root,
        inputs=recipe.inputs,
        batches=use.batches,
        batch_size=use.batch_size,
        seed=use.seed,
    )


def data_digest(data: Data, root: Path) -> str:
    """sha256 of what determines the batches: the files' bytes, or the code and its arguments.

    It loads no array and imports nothing.
    Raises: CalibrationError when a file is missing.
    """
    parts: dict[str, object] = {"labels": data.labels}
    if data.random:
        parts |= {"kind": "random", "version": 1, "sizes": dict(data.arguments)}
    elif data.path is not None:
        files = data_files.files(data, root)
        # In the order in which they are read. Their names do not count.
        named = ((f"{index:06d}{file.suffix}", file) for index, file in enumerate(files))
        parts["files"] = sha256_files(named)
        parts["kind"] = "npz" if len(files) == 1 and (root / data.path).is_file() else "folder"
    else:
        assert data.callable is not None
        parts["code"] = import_path.fingerprint(data.callable, root, field="data.callable")
        parts["name"] = data.callable.partition(":")[2]
        parts["arguments"] = dict(data.arguments)
        if named := named_files(data.arguments, root):
            parts["named_files"] = named
    parts["depends"] = depends_digests(
        data.depends, root, field="data.depends", error=CalibrationError
    )
    return import_path.digest(parts)


def split(batch: Mapping[str, Array], data: Data) -> tuple[Batch, Array | None]:
    """The inputs of a batch, and its labels if the data is labeled."""
    feeds = {name: array for name, array in batch.items() if name != data.labels}
    return feeds, batch[data.labels] if data.labels is not None else None


def _name(data: Data) -> str:
    return f"data {data.path or data.callable or 'random'}"


def _raw(
    data: Data, root: Path, inputs: Sequence[TensorSpec], batch_size: int, seed: int
) -> Iterator[Any]:
    if data.random:
        return _random(data, inputs, seed)
    if data.callable is not None:
        return _from_callable(data, root, batch_size, seed)
    files = data_files.files(data, root)
    assert data.path is not None
    if (root / data.path).is_file():
        return data_files.from_file(files[0], inputs, batch_size)
    return data_files.from_folder(files, inputs)


def _random(data: Data, inputs: Sequence[TensorSpec], seed: int) -> Iterator[Batch]:
    """Endless seeded batches at the sizes in `arguments`: floats from a normal distribution, whole
    numbers from 0 to 9 (as tokens, every vocabulary has them), and 0 or 1 for masks."""
    import numpy as np

    generator = np.random.default_rng(seed)
    sizes = cast("dict[str, int]", data.arguments)
    while True:
        batch: Batch = {}
        for tensor in inputs:
            shape = [sizes[dim] if isinstance(dim, str) else dim for dim in tensor.shape]
            dtype = "float32" if tensor.dtype == "bfloat16" else tensor.dtype
            if dtype.startswith("float"):
                batch[tensor.name] = np.asarray(generator.standard_normal(shape)).astype(dtype)
            else:
                few = dtype == "bool" or re.search(r"mask|type|segment", tensor.name.lower())
                high = 2 if few else 256 if dtype == "uint8" else 10
                batch[tensor.name] = np.asarray(generator.integers(0, high, shape)).astype(dtype)
        yield batch


def _from_callable(data: Data, root: Path, batch_size: int, seed: int) -> Iterator[Any]:
    assert data.callable is not None
    make = import_path.load(data.callable, root, field="data.callable", error=CalibrationError)
    if not callable(make):
        raise CalibrationError(
            f"data.callable: {data.callable!r} is not a function ({type(make).__name__})",
            fix="it must return an iterator of dicts from input name to numpy array when called",
        )
    offered = {"seed": seed, "batch_size": batch_size}
    taken = inspect.signature(make).parameters
    arguments = {name: value for name, value in offered.items() if name in taken}
    try:
        yield from cast("Iterator[Any]", make(**{**arguments, **data.arguments}))
    except Exception as error:
        raise CalibrationError(
            f"data.callable: {data.callable!r} raised {type(error).__name__}",
            why=str(error)[:600],
            fix="it must return an iterator of dicts from input name to numpy array",
        ) from error


def _checked(batch: object, data: Data, inputs: Sequence[TensorSpec], where: str) -> Batch:
    """Returns the batch if its names, dtypes, shapes and values fit the inputs.

    Infinities are allowed, because masks consist of them; a run of the model shows what they lead
    to."""
    import numpy as np

    if not isinstance(batch, Mapping):
        raise CalibrationError(
            f"{where} is a {type(batch).__name__}, not a dict from input name to array",
            fix=f"yield dict({_savez(tensor.name for tensor in inputs)})",
        )
    given = cast("Mapping[str, Any]", batch)
    wanted = {tensor.name for tensor in inputs}
    if data.labels is not None:
        wanted.add(data.labels)
    if set(given) != wanted:
        raise CalibrationError(
            f"{where}: it has {', '.join(sorted(map(str, given))) or 'nothing'}",
            why=f"the recipe's inputs (and labels) are {', '.join(sorted(wanted))}",
            fix=f"provide exactly one array for each: numpy.savez(FILE, {_savez(wanted)}); where "
            "one of them holds the true classes, name it as `labels`",
        )
    sizes: dict[str, tuple[int, str]] = {}
    for tensor in inputs:
        named = f"{where}: {tensor.name}"
        array = _as_array(given[tensor.name], named)
        if str(array.dtype) == tensor.dtype == "bfloat16":  # a type of ml_dtypes, not of numpy
            array = array.astype(np.float32)
        _check_array(array, tensor, named, sizes)
        if not data.not_finite and array.dtype.kind == "f" and (bad := np.isnan(array)).any():
            place = [int(index[0]) for index in np.nonzero(np.atleast_1d(bad))]
            raise CalibrationError(
                f"{named} contains NaN",
                why=f"{int(bad.sum())} of {array.size} values, the first at index {place}",
                fix="clean the data; if NaN is intended, write `not_finite: true` where the "
                "recipe names the data",
            )
    rounded = {tensor.name for tensor in inputs if tensor.dtype == "bfloat16"}
    return {
        str(name): _of_bfloat16(array) if name in rounded else np.asarray(array, order="C")
        for name, array in ((name, _as_array(value, where)) for name, value in given.items())
    }


def _savez(names: Iterable[str]) -> str:
    return ", ".join(f"{name}=array" for name in sorted(names))


def _as_array(value: object, where: str) -> Array:
    """Raises: CalibrationError for lists of different lengths, and tensors that need a gradient or
    are on a GPU."""
    import numpy as np

    try:
        return np.asarray(value)
    except Exception as error:
        raise CalibrationError(
            f"{where} is a {type(value).__name__} that is not an array",
            why=f"{type(error).__name__}: {one_line(error, 300)}",
            fix="yield numpy arrays; of a tensor: tensor.detach().cpu().numpy()",
        ) from error


def _of_bfloat16(array: Array) -> Array:
    """The numbers that the engine gets: float32, rounded to bfloat16."""
    import ml_dtypes
    import numpy as np

    return np.asarray(array, np.float32, order="C").astype(ml_dtypes.bfloat16).astype(np.float32)


def _check_array(
    array: Array, tensor: TensorSpec, where: str, sizes: dict[str, tuple[int, str]]
) -> None:

    # numpy has no bfloat16: such an input is fed from float32
    dtype = "float32" if tensor.dtype == "bfloat16" else tensor.dtype
    if str(array.dtype) != dtype:
        raise CalibrationError(
            f"{where} has the dtype {array.dtype}, but the recipe says {dtype}",
            fix=f"convert it: array.astype(np.{dtype})",
        )
    shape = f"({', '.join(map(str, tensor.shape))})"
    if array.ndim != len(tensor.shape):
        raise CalibrationError(
            f"{where} has the shape {array.shape}, but the recipe says {shape}",
            fix="the number of dims, including the batch, must be the same",
        )
    for axis, (size, dim) in enumerate(zip(array.shape, tensor.shape, strict=True)):
        if size == 0:
            raise CalibrationError(
                f"{where} has the shape {array.shape}, which is empty at axis {axis}"
            )
        if isinstance(dim, int) and size != dim:
            raise CalibrationError(
                f"{where} has the shape {array.shape}, but the recipe says {shape}",
                why=f"axis {axis} is {size}, not {dim}",
                fix=f"set `batch_size: {dim}` where the recipe names the data"
                if axis == 0
                else "preprocess the data to the model's input size",
            )
        if isinstance(dim, str):
            known, other = sizes.setdefault(dim, (size, tensor.name))
            if known != size:
                raise CalibrationError(
                    f"{where}: dim {dim!r} is {size} here and {known} in {other}",
                    fix="a symbolic dim must have the same size everywhere in a batch",
                )
