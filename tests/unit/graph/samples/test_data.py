"""Batches: streamed, and refused with the tensor's name when they do not fit."""

from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginefarm.documents.data import Data
from enginefarm.documents.recipe import TensorSpec
from enginefarm.errors import CalibrationError
from enginefarm.graph.samples import data

X = TensorSpec(name="x", shape=("batch", 3))
Y = TensorSpec(name="y", dtype="int64", shape=("batch", "time"))


def read(source: Data, root: Path, inputs: Any = (X,), batches: int = 100, size: int = 4) -> list:
    return list(
        data.batches(source, root=root, inputs=inputs, batches=batches, batch_size=size, seed=7)
    )


def code(tmp_path: Path, body: str) -> Data:
    (tmp_path / "code.py").write_text(f"import numpy as np\n{body}")
    return Data(callable="code.py:data")


def test_an_npz_is_cut_along_its_first_axis(tmp_path: Path) -> None:
    x = np.arange(30, dtype=np.float32).reshape(10, 3)
    np.savez(tmp_path / "d.npz", x=x)
    found = read(Data(path="d.npz"), tmp_path)
    assert [batch["x"].shape[0] for batch in found] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in found]), x)
    assert len(read(Data(path="d.npz"), tmp_path, batches=2)) == 2


def test_an_array_in_fortran_order_is_cut_too(tmp_path: Path) -> None:
    x = np.arange(30, dtype=np.float32).reshape(10, 3)
    np.savez(tmp_path / "d.npz", x=np.asfortranarray(x))
    found = read(Data(path="d.npz"), tmp_path)
    assert [batch["x"].shape[0] for batch in found] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in found]), x)


@pytest.mark.parametrize(
    ("body", "what", "fix"),
    [
        ("data = 3", "is not a function (int)", "it must return"),
        (
            "import torch\ndef data():\n    yield {'x': torch.ones(2, 3, requires_grad=True)}",
            "batch 0: x is a Tensor that is not an array",
            "tensor.detach().cpu().numpy()",
        ),
        (
            "def data():\n    yield {'x': [[1.0, 2.0], [3.0]]}",
            "batch 0: x is a list that is not an array",
            "yield numpy arrays",
        ),
    ],
)
def test_what_is_no_function_and_no_array_is_one_error(
    tmp_path: Path, body: str, what: str, fix: str
) -> None:
    with pytest.raises(CalibrationError) as caught:
        read(code(tmp_path, body), tmp_path)
    assert what in caught.value.what
    assert fix in caught.value.fix


def test_an_npy_file_is_the_data_of_a_model_with_one_input(tmp_path: Path) -> None:
    array = np.arange(15, dtype=np.float32).reshape(5, 3)
    np.save(tmp_path / "d.npy", array)
    source, how = Data(path="d.npy"), {"batches": 2, "batch_size": 4, "seed": 0}
    x, y = (TensorSpec(name=name, shape=("batch", 3)) for name in "xy")
    found = [one["x"] for one in data.batches(source, root=tmp_path, inputs=(x,), **how)]
    np.testing.assert_array_equal(np.concatenate(found), array)
    assert [len(one) for one in found] == [4, 1]
    with pytest.raises(CalibrationError, match="one array for 2 inputs"):
        list(data.batches(source, root=tmp_path, inputs=(x, y), **how))


@pytest.mark.parametrize(
    ("name", "content", "says", "fix"),
    [
        ("d.csv", b"1,2", "neither an .npz or .npy file nor", "callable: data.py:batches"),
        ("d.npz", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer", "git lfs"),
        ("d.npz", b"", "the file is empty", "copy it again"),
    ],
)
def test_what_stands_in_place_of_arrays_is_called_what_it_is(
    tmp_path: Path, name: str, content: bytes, says: str, fix: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CalibrationError) as caught:
        read(Data(path=name), tmp_path)
    assert says in caught.value.what
    assert fix in caught.value.fix


def test_a_url_is_not_taken_for_a_path(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"s3://bucket/d\.npz is not a file") as caught:
        read(Data(path="s3://bucket/d.npz"), tmp_path)
    assert "download it" in caught.value.fix


def test_a_large_npz_is_not_read_whole(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", x=np.zeros((4_000_000, 3), np.float32))
    tracemalloc.start()
    batches = data.batches(
        Data(path="d.npz"), root=tmp_path, inputs=(X,), batches=8, batch_size=1000, seed=0
    )
    assert sum(batch["x"].shape[0] for batch in batches) == 8000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20, f"48 MB of data, {peak} bytes at once"


def test_a_folder_is_a_batch_a_file_in_order(tmp_path: Path) -> None:
    for index in (2, 0, 1):
        np.save(tmp_path / f"{index}.npy", np.full((index + 1, 3), index, np.float32))
    assert [batch["x"].shape[0] for batch in read(Data(path="."), tmp_path)] == [1, 2, 3]


def test_a_callable_gets_the_seed_and_the_batch_size_where_it_takes_them(tmp_path: Path) -> None:
    body = "def data(seed, batch_size, scale):\n"
    body += "    yield {'x': np.full((batch_size, 3), seed * scale, np.float32)}\n"
    source = code(tmp_path, body).model_copy(update={"arguments": {"scale": 2}})
    assert (read(source, tmp_path)[0]["x"] == 14).all()
    assert read(code(tmp_path, "def data():\n  yield {'x': np.ones((1, 3), 'f')}"), tmp_path)


def test_labels_travel_with_the_batch(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((4, 3), np.float32), digit=np.arange(4))
    source = Data(path="d.npz", labels="digit")
    feeds, labels = data.split(read(source, tmp_path)[0], source)
    assert list(feeds) == ["x"]
    assert labels is not None
    assert labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{}", ["it has nothing", "x"]),
        ("{'x': np.ones((2, 3), 'f'), 'z': 1}", ["it has x, z"]),
        ("{'x': np.ones((2, 3))}", ["x has the dtype float64", "astype(np.float32)"]),
        ("{'x': np.ones((2, 4), 'f')}", ["x has the shape (2, 4)", "axis 1 is 4, not 3"]),
        ("{'x': np.ones((3,), 'f')}", ["x has the shape (3,)", "(batch, 3)"]),
        ("{'x': np.ones((0, 3), 'f')}", ["x has the shape (0, 3), which is empty"]),
        ("{'x': np.full((1, 3), np.nan, 'f')}", ["x contains NaN", "not_finite: true"]),
        (
            "{'x': np.array([[1, 2, 3], [np.inf, 5, np.nan]], 'f')}",
            ["batch 0: x contains NaN", "1 of 6 values, the first at index [1, 2]"],
        ),
        ("[1]", ["batch 0 is a list, not a dict"]),
        ("1 / 0", ["raised ZeroDivisionError", "division by zero"]),
    ],
)
def test_a_wrong_batch_is_one_error_that_names_the_tensor(
    tmp_path: Path, value: str, words: list[str]
) -> None:
    source = code(tmp_path, f"def data(seed):\n  yield {value}\n")
    with pytest.raises(CalibrationError) as caught:
        read(source, tmp_path)
    for word in words:
        assert word in str(caught.value)


def test_infinities_are_read(tmp_path: Path) -> None:
    source = code(tmp_path, "def data(seed):\n  yield {'x': np.full((1, 3), -np.inf, 'f')}\n")
    (batch,) = read(source, tmp_path)
    assert np.isneginf(batch["x"]).all()


@pytest.mark.parametrize("dtype", ["'f'", "__import__('ml_dtypes').bfloat16"])
def test_data_of_a_bfloat16_input_is_what_the_engine_is_given(tmp_path: Path, dtype: str) -> None:
    source = code(tmp_path, f"def data(seed):\n  yield {{'x': np.full((1, 3), 1.001, {dtype})}}\n")
    low = [X.model_copy(update={"dtype": "bfloat16"})]
    (batch,) = data.batches(source, root=tmp_path, inputs=low, batches=1, batch_size=1, seed=0)
    assert batch["x"].dtype == np.float32, "numpy has no bfloat16"
    assert batch["x"].tolist() == [[1.0, 1.0, 1.0]]


def test_nan_on_purpose_is_read(tmp_path: Path) -> None:
    source = code(tmp_path, "def data(seed):\n  yield {'x': np.full((1, 3), np.nan, 'f')}\n")
    (batch,) = read(source.model_copy(update={"not_finite": True}), tmp_path)
    assert np.isnan(batch["x"]).all()


def test_one_dim_has_one_size_in_a_batch(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((2, 3), np.float32), y=np.ones((3, 5), np.int64))
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "a.npz").rename(folder / "a.npz")
    with pytest.raises(CalibrationError, match="y: dim 'batch' is 3 here and 2 in x"):
        read(Data(path="folder"), tmp_path, inputs=(X, Y))


@pytest.mark.parametrize("content", [b"not a zip", b"PK\x03\x04"])
def test_a_file_that_is_no_npz(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(CalibrationError, match=r"data\.path: d\.npz cannot be read"):
        read(Data(path="d.npz"), tmp_path)


def npy(shape: str, *, fortran: bool = False) -> bytes:
    """An .npy of three samples whose header says another shape."""
    header = f"{{'descr': '<f4', 'fortran_order': {fortran}, 'shape': {shape}}}"
    return np.lib.format.magic(1, 0) + len(header).to_bytes(2, "little") + header.encode() + ZEROS


ZEROS = bytes(3 * 3 * 4)
DAMAGED = {
    "unfinished": npy("(3, 3")[:-37],
    "negative": npy("(-3, 3)"),
    "beyond 64 bits": npy(f"({10**30}, 3)", fortran=True),
    "beyond memory": npy(f"({10**12}, {10**12})"),
    "nested": npy("-" * 9000 + "3"),
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("name", ["d.npy", "d.npz"])
def test_a_header_that_says_another_array_is_one_error(
    tmp_path: Path, damage: str, name: str
) -> None:
    content = DAMAGED[damage]
    if name.endswith("npz"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("x.npy", content)
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CalibrationError, match=rf"data\.path: {name} cannot be read"):
        read(Data(path=name), tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / name).rename(tmp_path / "folder" / name)
    with pytest.raises(CalibrationError, match=rf"data\.path: {name} cannot be read"):
        read(Data(path="folder"), tmp_path)


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(CalibrationError, match="Python objects"):
        read(Data(path="d.npz"), tmp_path)
    np.save(tmp_path / "0.npy", np.array([{"a": 1}], dtype=object))
    (tmp_path / "d.npz").unlink()
    with pytest.raises(CalibrationError, match="cannot be read"):
        read(Data(path="."), tmp_path)


def test_no_data_at_all(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="it has no samples"):
        read(code(tmp_path, "def data(seed):\n  return iter(())\n"), tmp_path)
    np.savez(tmp_path / "d.npz", x=np.ones((0, 3), np.float32))
    with pytest.raises(CalibrationError, match="it has no samples"):
        read(Data(path="d.npz"), tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CalibrationError, match=r"no \.npz or \.npy file"):
        read(Data(path="empty"), tmp_path)
    with pytest.raises(CalibrationError, match="missing: the file does not exist"):
        read(Data(path="missing"), tmp_path)
    with pytest.raises(CalibrationError, match="the file does not exist"):
        read(Data(callable="missing.py:data"), tmp_path)
