"""An ONNX model in S3 whose weights are in files of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from enginefarm.documents.sources import OnnxSource
from enginefarm.errors import SourceError
from enginefarm.graph import onnx_files
from enginefarm.graph.sources.onnx_file import OnnxFile
from enginefarm.store.engine_store import EngineStore
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
    source, found = OnnxSource(kind="onnx", path=url), []
    for weight in (2.0, 3.0):
        write(tmp_path / str(weight), weight, data)
        upload(objects, tmp_path / str(weight))
        work = tmp_path / f"work{weight}"
        OnnxFile().fetch(source, work)
        made = onnx_files.read(OnnxFile().load(source, tmp_path, work))
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
