"""ONNX files: bad ones give one clear error, good ones the same bytes each time."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from enginefarm.documents.sources import OnnxSource
from enginefarm.errors import ExportError, SourceError, one_line
from enginefarm.graph.model import onnx_files
from enginefarm.graph.sources import source


def model(weight: np.ndarray | None = None) -> onnx.ModelProto:
    weight = np.eye(4, dtype=np.float32) if weight is None else weight
    return helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"], "mm")],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
            [numpy_helper.from_array(weight, "w")],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


def save(path: Path, made: onnx.ModelProto | None = None) -> Path:
    onnx.save(made or model(), path)
    return path


def load(path: Path, work: Path) -> Path:
    found = source("onnx").load(OnnxSource(kind="onnx", path=path.name), path.parent, work).model
    assert isinstance(found, Path)
    return found


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "the file is empty"),
        (b"no", "2 bytes"),
        (b"This is a text file, and quite long at that.\n" * 20, ""),
        (b"\x00" * 4096, ""),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 400, ""),
        (b"\x14\0\0\0ORTM" + b"\x0c\0\x10\0" * 100, "ONNX Runtime's own format"),
    ],
    ids=["empty", "two bytes", "text", "zeros", "picture", "ort"],
)
def test_what_is_no_onnx_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(SourceError, match=r"source\.path: m\.onnx") as caught:
        load(tmp_path / "m.onnx", tmp_path / "work")
    assert why in str(caught.value)
    assert not (tmp_path / "work" / "model.onnx").exists()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_file_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    data = save(tmp_path / "whole.onnx").read_bytes()
    (tmp_path / "m.onnx").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(SourceError, match=r"m\.onnx"):
        load(tmp_path / "m.onnx", tmp_path / "work")


@pytest.mark.parametrize(
    "location", ["../secret.bin", "/etc/passwd", "a/../../secret.bin", "a" * 5000]
)
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    made = model()
    weight = made.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    (folder / "m.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(SourceError, match="tensor 'w' keeps its data in"):
        load(folder / "m.onnx", tmp_path / "work")


def test_external_data_through_a_link_is_refused(tmp_path: Path) -> None:
    made = model(np.ones((64, 64), np.float32))
    onnx.save(made, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin")
    (tmp_path / "w.bin").rename(tmp_path / "elsewhere.bin")
    (tmp_path / "w.bin").symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(SourceError, match="keeps its data in"):
        load(tmp_path / "m.onnx", tmp_path / "work")


def test_external_data_in_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    made = model(np.ones((64, 64), np.float32))
    onnx.save(made, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin")
    (tmp_path / "w.bin").unlink()
    os.mkfifo(tmp_path / "w.bin")
    with pytest.raises(SourceError, match="cannot be read") as refused:
        load(tmp_path / "m.onnx", tmp_path / "work")
    assert "not a file" in refused.value.why


def test_external_data_that_is_missing_or_short_names_the_tensor(tmp_path: Path) -> None:
    made = model(np.ones((64, 64), np.float32))
    onnx.save(made, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin")
    data = (tmp_path / "w.bin").read_bytes()
    (tmp_path / "w.bin").write_bytes(data[:100])
    with pytest.raises(SourceError, match="tensor 'w'"):
        load(tmp_path / "m.onnx", tmp_path / "work")
    (tmp_path / "w.bin").unlink()
    with pytest.raises(SourceError, match="the data of tensor 'w' cannot be read"):
        load(tmp_path / "m.onnx", tmp_path / "work")


def test_a_graph_that_is_not_valid_names_the_node(tmp_path: Path) -> None:
    made = model(np.ones((5, 4), np.float32))
    with pytest.raises(SourceError, match="not a valid ONNX model") as caught:
        load(save(tmp_path / "m.onnx", made), tmp_path / "work")
    assert "mm" in caught.value.why


def test_an_operator_that_onnx_cannot_infer_by_its_own_definition_is_valid(tmp_path: Path) -> None:
    def graph(made: list[int]) -> Path:
        node = helper.make_node("MeanVarianceNormalization", ["x"], ["y"], "mvn")
        given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 4, 4])
        out = helper.make_tensor_value_info("y", TensorProto.FLOAT, made)
        body = helper.make_graph([node], "g", [given], [out])
        opsets = [helper.make_opsetid("", 13)]
        onnx.save(helper.make_model(body, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
        return tmp_path / "m.onnx"

    onnx_files.check(graph([2, 3, 4, 4]), error=ExportError, what="m")


def test_a_body_that_is_not_valid_is_refused(tmp_path: Path) -> None:
    inner = helper.make_tensor_value_info("t", TensorProto.FLOAT, [9, 9])
    branch = helper.make_graph(
        [helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0])], "b", [], [inner]
    )
    node = helper.make_node("If", ["c"], ["y"], "if", then_branch=branch, else_branch=branch)
    ends = [
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3]),
    ]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    made = helper.make_model(helper.make_graph([node], "g", ends, [out]), ir_version=8)
    onnx.save(made, tmp_path / "m.onnx")
    with pytest.raises(ExportError, match="not a valid ONNX model"):
        onnx_files.check(tmp_path / "m.onnx", error=ExportError, what="m")


def test_the_normal_form_forgets_where_and_when(tmp_path: Path) -> None:
    first, second = model(), model()
    second.producer_name = "exporter 3"
    second.doc_string = "made in /home/somebody"
    second.metadata_props.add(key="when", value="today")
    second.graph.node[0].doc_string = "File /home/somebody/model.py line 3"
    second.graph.node[0].metadata_props.add(key="stack", value="/home/somebody")
    save(tmp_path / "a.onnx", first)
    save(tmp_path / "b.onnx", second)
    one = load(tmp_path / "a.onnx", tmp_path / "1").read_bytes()
    assert one == load(tmp_path / "b.onnx", tmp_path / "2").read_bytes()
    assert b"somebody" not in one


def test_large_tensors_go_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_files, "EXTERNAL_ABOVE_BYTES", 1000)
    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    for _ in range(2):  # the second time over what is there
        path = onnx_files.write(model(weight), tmp_path / "out")
    data = tmp_path / "out" / "model.onnx.data"
    assert onnx_files.files(path) == (path, data)
    assert data.stat().st_size == weight.nbytes
    assert data.stat().st_mode & 0o777 == 0o644
    back = onnx_files.read(path)
    np.testing.assert_array_equal(numpy_helper.to_array(back.graph.initializer[0]), weight)
    assert not back.graph.initializer[0].external_data
    onnx_files.write(model(), tmp_path / "out")
    assert not data.exists(), "a smaller model leaves no data of the larger one behind"


def test_broken_weights_are_found_by_name() -> None:
    weight = np.ones((4, 4), np.float32)
    assert onnx_files.broken_tensor(model(weight)) is None
    weight[2, 2] = np.nan
    assert onnx_files.broken_tensor(model(weight)) == "tensor 'w' holds NaN"
    weight[2, 1:3] = np.inf, -np.inf
    assert "infinities of both signs" in str(onnx_files.broken_tensor(model(weight)))
    made = model()
    made.graph.initializer[0].raw_data += b"more"
    assert "tensor 'w' cannot be read" in str(onnx_files.broken_tensor(made))


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_mask_of_infinities_is_no_damage(sign: int) -> None:
    mask = np.triu(np.full((4, 4), sign * np.inf, np.float32), 1)
    assert onnx_files.broken_tensor(model(mask)) is None


@pytest.mark.parametrize("seed", range(4))
def test_mutated_files_give_our_errors_and_no_others(tmp_path: Path, seed: int) -> None:
    """2,200 such files went through the whole road by hand; none crashed the process."""
    random = np.random.default_rng(seed)
    whole = model(np.ones((4, 4), np.float32)).SerializeToString()
    for _ in range(40):
        data = bytearray(whole)
        for place in random.integers(len(data), size=3):
            data[place] = random.integers(256)
        (tmp_path / "m.onnx").write_bytes(data)
        with contextlib.suppress(SourceError):
            found = load(tmp_path / "m.onnx", tmp_path / "work")
            onnx_files.broken_tensor(onnx_files.read(found))


def test_a_name_that_is_not_utf_8_is_said(tmp_path: Path) -> None:
    made = helper.make_model(
        helper.make_graph(
            [helper.make_node("Relu", ["x"], ["y"], "relu_here")],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        )
    )
    data = made.SerializeToString().replace(b"relu_here", b"relu_h\xf6re")
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(SourceError, match="not a valid ONNX model") as caught:
        load(tmp_path / "m.onnx", tmp_path / "work")
    assert r"relu_h\xf6re" in caught.value.why


def test_errors_come_without_colors_and_line_breaks() -> None:
    assert one_line("\x1b[31mred\x1b[0m\n  and  more") == "red and more"
    long = one_line("no profile: " + "x" * 9000 + " of the input `mask`")
    assert len(long) == 500
    assert long.startswith("no profile: ")
    assert long.endswith("of the input `mask`")
