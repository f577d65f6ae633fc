"""An ONNX model in S3 whose weights are in files of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_proxy import FaultyProxy
from onnx import TensorProto, helper, numpy_helper

from enginefarm.documents.sources import OnnxSource
from enginefarm.errors import SourceError
from enginefarm.graph.model import onnx_files
from enginefarm.graph.sources import onnx_file, s3_file
from enginefarm.graph.sources.onnx_file import OnnxFile
from enginefarm.store import prune, s3
from enginefarm.store.cache import BlobCache
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.prune import SOURCES
from enginefarm.store.s3 import ObjectStore


def write(folder: Path, weight: float, data: str) -> None:
    """model.onnx, which says that its weights are in `data`."""
    folder.mkdir(parents=True, exist_ok=True)
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    weights = numpy_helper.from_array(np.full(4, weight, np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])], "g", value[:1], value[1:], [weights]
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / data).parent.mkdir(exist_ok=True)
    (folder / data).write_bytes(weights.raw_data)
    (tensor,) = made.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=data)
    (folder / "model.onnx").write_bytes(made.SerializeToString())


def upload(objects: ObjectStore, folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            objects.put(f"models/{file.relative_to(folder).as_posix()}", file.read_bytes())


@pytest.mark.parametrize("data", ["model.onnx.data", "weights/of one.bin"])
def test_new_weights_are_a_new_model(
    tmp_path: Path, store_environment: EngineStore, data: str
) -> None:
    """The model itself is the same, to the byte."""
    objects = store_environment.objects
    url = f"s3://{objects.bucket}/{objects.full('models/model.onnx')}"
    source = OnnxSource(kind="onnx", path=url)
    found: list[str] = []
    for weight in (2.0, 3.0):
        write(tmp_path / str(weight), weight, data)
        upload(objects, tmp_path / str(weight))
        work = tmp_path / f"work{weight}"
        OnnxFile().fetch(source, work)
        made = onnx_files.read(OnnxFile().load(source, tmp_path, work).model)
        (tensor,) = made.graph.initializer
        assert (numpy_helper.to_array(tensor) == weight).all()
        found.append(OnnxFile().fingerprint(source, tmp_path))
        assert OnnxFile().fingerprint(source, tmp_path) == found[-1]
    assert found[0] != found[1]


def test_a_data_file_that_is_missing_is_named(
    tmp_path: Path, store_environment: EngineStore
) -> None:
    objects = store_environment.objects
    write(tmp_path / "m", 2.0, "w.bin")
    (tmp_path / "m" / "w.bin").unlink()
    upload(objects, tmp_path / "m")
    url = f"s3://{objects.bucket}/{objects.full('models/model.onnx')}"
    with pytest.raises(SourceError, match=r"w\.bin: the object does not exist"):
        OnnxFile().fingerprint(OnnxSource(kind="onnx", path=url), tmp_path)


class Download:
    """Bytes that the server of an S3 model sent for its objects."""

    def __init__(self, store: EngineStore, proxy: FaultyProxy) -> None:
        objects = store.objects
        self.url = f"s3://{objects.bucket}/{objects.full('models/model.onnx')}"
        self.source = OnnxSource(kind="onnx", path=self.url)
        self.proxy = proxy

    def of(self, work: Callable[[], object]) -> int:
        before = self.proxy.served_bytes
        work()
        return self.proxy.served_bytes - before


@pytest.fixture
def download(store_environment: EngineStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Download]:
    proxy = FaultyProxy(os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    yield Download(store_environment, proxy)
    proxy.close()


LARGE = 40 << 20
"""More than two parts of a download."""


def large_model(folder: Path, byte: int = 0) -> None:
    """A model of more than LARGE bytes whose last weights are in w.bin."""
    write(folder, 2.0, "w.bin")
    model: Any = onnx_files.graph_only(folder / "model.onnx")
    weights = np.full(LARGE, byte, np.uint8)
    model.graph.initializer.append(numpy_helper.from_array(weights, "unused"))
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def test_a_model_is_downloaded_once_for_its_digest_and_for_its_export(
    tmp_path: Path, download: Download
) -> None:
    large_model(tmp_path / "m")
    upload(s3_of(download), tmp_path / "m")
    source = download.source
    assert download.of(lambda: OnnxFile().fingerprint(source, tmp_path)) > LARGE
    names: Any = onnx_file
    names._data_files_of.cache_clear()  # as another process
    assert download.of(lambda: OnnxFile().fingerprint(source, tmp_path)) < LARGE // 100
    assert download.of(lambda: OnnxFile().fetch(source, tmp_path / "work")) < LARGE // 100
    fetched = tmp_path / "work" / onnx_file.DOWNLOADED
    for name in ("model.onnx", "w.bin"):
        assert (fetched / name).read_bytes() == (tmp_path / "m" / name).read_bytes()


def test_a_download_that_is_interrupted_goes_on(tmp_path: Path, download: Download) -> None:
    large_model(tmp_path / "m")
    upload(s3_of(download), tmp_path / "m")
    download.proxy.faults, download.proxy.chance = ("cut",), 0.2
    OnnxFile().fetch(download.source, tmp_path / "work")
    assert download.proxy.done["cut"]
    fetched = tmp_path / "work" / onnx_file.DOWNLOADED / "model.onnx"
    assert fetched.read_bytes() == (tmp_path / "m" / "model.onnx").read_bytes()


def test_a_model_that_is_replaced_during_its_download_is_not_mistaken_for_the_old_one(
    tmp_path: Path, download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    for byte in (0, 1):
        large_model(tmp_path / str(byte), byte)
    objects = s3_of(download)
    upload(objects, tmp_path / "0")
    version = s3_file.version
    replaced: list[None] = []

    def then_replaced(url: str) -> str:
        found = version(url)
        if not replaced:
            upload(objects, tmp_path / "1")
            replaced.append(None)
        return found

    monkeypatch.setattr(s3_file, "version", then_replaced)
    with pytest.raises(SourceError, match="was replaced while it was downloaded"):
        s3_file.cached(download.url)
    path, _ = s3_file.cached(download.url)
    assert path.read_bytes() == (tmp_path / "1" / "model.onnx").read_bytes()


def test_a_note_that_another_user_can_have_written_does_not_count(
    tmp_path: Path, download: Download
) -> None:
    write(tmp_path / "m", 2.0, "w.bin")
    upload(s3_of(download), tmp_path / "m")
    s3_file.cached(download.url)
    other = BlobCache().add(tmp_path / "m" / "w.bin")
    (note,) = (BlobCache().root / SOURCES).iterdir()
    note.write_text(f"{other.digest} {other.size_bytes}")
    note.chmod(0o666)
    path, _ = s3_file.cached(download.url)
    assert path.read_bytes() == (tmp_path / "m" / "model.onnx").read_bytes()


def test_a_note_goes_with_the_model_that_it_names(tmp_path: Path, download: Download) -> None:
    write(tmp_path / "m", 2.0, "w.bin")
    upload(s3_of(download), tmp_path / "m")
    path, _ = s3_file.cached(download.url)
    root = BlobCache().root
    assert prune.clean(root) == 0
    path.unlink()
    assert prune.clean(root) == 1
    assert not list((root / SOURCES).iterdir())


def s3_of(download: Download) -> ObjectStore:
    folder, _, _ = download.url.rpartition("/models/")
    return s3.connect(folder)
