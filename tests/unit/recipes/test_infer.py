"""A recipe for a model that has none."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from enginefarm.errors import EnginefarmError, RecipeError, UsageError
from enginefarm.recipes import file as recipe_file
from enginefarm.recipes import infer

WISHES = infer.Wishes(gpus=("t4", "l4"))


def model(path: Path, *shape: int | str | None, dtype: int = TensorProto.FLOAT) -> Path:
    given = helper.make_tensor_value_info("Input:0", dtype, shape)
    made = helper.make_tensor_value_info("y", dtype, None)
    node = helper.make_node("Identity", ["Input:0"], ["y"])
    onnx.save(helper.make_model(helper.make_graph([node], "g", [given], [made])), path)
    return path


def test_an_onnx_file_says_what_its_inputs_are(tmp_path: Path) -> None:
    path = model(tmp_path / "My Net.onnx", "N", 3, 64, 64)
    recipe = recipe_file.parse(infer.infer(str(path), WISHES, tmp_path))
    assert recipe.name == "my-net"
    assert recipe.source.model_dump() == {"kind": "onnx", "path": "My Net.onnx"}
    assert [(one.name, one.dtype, one.shape) for one in recipe.inputs] == [
        ("Input:0", "float32", ("n", 3, 64, 64))
    ]
    assert recipe.profiles[0].dims["n"].model_dump() == {"min": 1, "opt": 8, "max": 32}
    assert recipe.gpus == ("t4", "l4")
    assert recipe.verification_data.random


@pytest.mark.parametrize("unknown", [None, 0, -1, "?", "2x"])
def test_a_dim_without_a_usable_name_gets_one(tmp_path: Path, unknown: int | str | None) -> None:
    path = model(tmp_path / "m.onnx", unknown, 8)
    assert recipe_file.parse(infer.infer(str(path), WISHES, tmp_path)).dynamic_dims == ("batch",)


def test_a_recipe_elsewhere_names_the_whole_path(tmp_path: Path) -> None:
    path = model(tmp_path / "m.onnx", 1, 8)
    (tmp_path / "other").mkdir()
    recipe = recipe_file.parse(infer.infer(str(path), WISHES, tmp_path / "other"))
    assert recipe.source.model_dump()["path"] == str(path)


def test_a_size_that_nobody_said_is_asked_for(tmp_path: Path) -> None:
    path = model(tmp_path / "m.onnx", "n", 3, "h", "w")
    with pytest.raises(UsageError) as refused:
        infer.infer(str(path), WISHES, tmp_path)
    assert refused.value.fix == "--dim h=MIN,OPT,MAX --dim w=MIN,OPT,MAX"
    told = WISHES._replace(dims=("h=32,64,128", "w=64"))
    dims = recipe_file.parse(infer.infer(str(path), told, tmp_path)).profiles[0].dims
    assert dims["h"].max == 128
    assert dims["w"].min == dims["w"].max == 64


@pytest.mark.parametrize(
    ("given", "wishes", "word"),
    [
        ("gone.onnx", WISHES, "gone.onnx"),
        ("gone.py:build", WISHES, "gone.py"),
        ("m.onnx", WISHES._replace(dims=("height=1",)), "--dim height=1"),
        ("m.onnx", WISHES._replace(inputs=("x:float31:1",)), "--input x:float31:1"),
        ("m.onnx", WISHES._replace(precisions=("int8",)), "--calibration FILE.npz"),
        ("text.onnx", WISHES, "not an ONNX file"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, given: str, wishes: infer.Wishes, word: str) -> None:
    model(tmp_path / "m.onnx", "n", 8)
    (tmp_path / "text.onnx").write_text("this is text")
    with pytest.raises(EnginefarmError, match=r".") as refused:
        infer.infer(str(tmp_path / given), wishes, tmp_path)
    assert word in str(refused.value)


@pytest.mark.parametrize(
    ("dtype", "shape", "why"),
    [
        (TensorProto.STRING, (1, 8), "takes string there"),
        (TensorProto.COMPLEX64, (1, 8), "takes complex64 there"),
        (TensorProto.FLOAT, None, "how many dims"),
    ],
)
def test_an_input_that_no_recipe_can_have_is_named(
    tmp_path: Path, dtype: int, shape: tuple[int, ...] | None, why: str
) -> None:
    path = tmp_path / "m.onnx"
    given = helper.make_tensor_value_info("x", dtype, shape)
    made = helper.make_tensor_value_info("y", dtype, None)
    node = helper.make_node("Identity", ["x"], ["y"])
    onnx.save(helper.make_model(helper.make_graph([node], "g", [given], [made])), path)
    with pytest.raises(RecipeError, match="'x'") as refused:
        infer.infer(str(path), WISHES, tmp_path)
    assert why in refused.value.why


def test_a_double_is_fed_as_the_graph_is_read(tmp_path: Path) -> None:
    path = model(tmp_path / "m.onnx", 1, 8, dtype=TensorProto.DOUBLE)
    recipe = recipe_file.parse(infer.infer(str(path), WISHES, tmp_path))
    assert recipe.inputs[0].dtype == "float32"


def test_a_callable_needs_its_inputs_by_hand(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("def build(): ...")
    given = f"{tmp_path}/net.py:build"
    with pytest.raises(UsageError, match="inputs are not known"):
        infer.infer(given, WISHES, tmp_path)
    told = WISHES._replace(inputs=("x:float32:batch,8", "ids:int64:batch,16"))
    recipe = recipe_file.parse(infer.infer(given, told, tmp_path))
    assert recipe.source.model_dump()["callable"] == "net.py:build"
    assert recipe.inputs[1].shape == ("batch", 16)
    with pytest.raises(UsageError, match="cannot name code"):
        infer.infer(given, told, tmp_path.parent)


@pytest.mark.parametrize(
    ("name", "content", "says", "fix"),
    [
        ("net.py", "class Net: ...\ndef build(): ...", "which function in it", "net.py:NAME"),
        ("one.py", "import os\ndef build(): ...\n_x = 1", "which function in it", "one.py:build"),
        ("w.safetensors", "x", "weights of a model, without its code", "checkpoint: w.safetensors"),
        ("w.PT", "x", "weights of a model, without its code", "checkpoint: w.PT"),
    ],
)
def test_code_and_weights_alone_are_no_model_and_no_recipe(
    tmp_path: Path, name: str, content: str, says: str, fix: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    for ask in (lambda: infer.infer(str(path), WISHES, tmp_path), lambda: recipe_file.load(path)):
        with pytest.raises(RecipeError, match=says) as refused:
            ask()
        assert fix in refused.value.fix


@pytest.mark.parametrize(
    ("given", "says"),
    [("a.h5", "is not a model that"), (".", "it is a folder"), ("s3://b/m.onnx", "is not a file")],
)
def test_what_is_no_model_is_called_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.h5").write_text("x")
    with pytest.raises(RecipeError, match=says):
        infer.infer(given, WISHES, tmp_path)


def test_a_model_in_place_of_a_recipe_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("def build(): ...")
    for given in (model(tmp_path / "m.onnx", 1, 8), tmp_path / "net.py:build"):
        with pytest.raises(RecipeError, match="is a model, where a recipe") as refused:
            recipe_file.load(given)
        assert "enginefarm init" in refused.value.fix


def test_a_suffix_may_have_capitals(tmp_path: Path) -> None:
    path = model(tmp_path / "NET.ONNX", "n", 8)
    assert recipe_file.parse(infer.infer(str(path), WISHES, tmp_path)).source.kind == "onnx"


def program(path: Path, inputs: list[dict[str, Any]], **ranges: Any) -> Path:
    """The part of a .pt2 archive that says what its inputs are; s0 is 2 to 16."""
    specs = [{"user_input": {"arg": {"as_tensor": {"name": f"x{i}"}}}} for i in range(len(inputs))]
    specs.insert(0, {"parameter": {"arg": {"name": "p_w"}, "parameter_name": "w"}})
    values = {f"x{i}": value for i, value in enumerate(inputs)}
    graph = {"graph": {"tensor_values": values}, "signature": {"input_specs": specs}}
    limits = {"s0": {"min_val": 2, "max_val": 16}, **ranges}
    text = json.dumps({"graph_module": graph, "range_constraints": limits})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/models/model.json", text)
    return path


def size(symbol: str) -> dict[str, Any]:
    return {"as_expr": {"expr_str": f"Symbol('{symbol}', positive=True, integer=True)"}}


def test_a_program_says_what_its_inputs_are(tmp_path: Path) -> None:
    """As torch.export.save wrote it; the ranges of its dims bound the defaults."""
    from torch import nn, ones, zeros
    from torch.export import Dim, export, save

    class Net(nn.Module):
        def forward(self, x, ids):  # type: ignore[no-untyped-def]
            return x * ids.sum(1, keepdim=True)

    batch = Dim("batch", min=2, max=16)
    axes = {"x": {0: batch}, "ids": {0: batch, 1: Dim("seq", min=1, max=9)}}
    given = (ones(3, 4), zeros(3, 7).long())
    path = tmp_path / "net.pt2"
    save(export(Net(), given, dynamic_shapes=axes), path)
    with pytest.raises(UsageError, match="the size of dim_ids_1 is not known"):
        infer.infer(str(path), WISHES, tmp_path)
    told = WISHES._replace(dims=("dim_ids_1=4",))
    recipe = recipe_file.parse(infer.infer(str(path), told, tmp_path))
    assert [(one.name, one.dtype, one.shape) for one in recipe.inputs] == [
        ("x", "float32", ("batch", 4)),
        ("ids", "int64", ("batch", "dim_ids_1")),
    ]
    assert recipe.profiles[0].dims["batch"].model_dump() == {"min": 2, "opt": 8, "max": 16}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"dtype": 8, "sizes": []}, "input 'x0'"),
        ({"dtype": 7, "sizes": [{"as_expr": {"expr_str": "2*s0"}}]}, "a dim is 2\\*s0"),
        ({"dtype": 7}, "not a program of torch.export"),
    ],
)
def test_a_program_without_a_place_in_a_recipe_is_refused(
    tmp_path: Path, value: dict[str, Any], says: str
) -> None:
    path = program(tmp_path / "m.pt2", [value])
    with pytest.raises(RecipeError, match=says):
        infer.infer(str(path), WISHES, tmp_path)


def test_two_dims_of_a_program_have_two_names(tmp_path: Path) -> None:
    inputs = [{"dtype": 7, "sizes": [size(one), size("s0")]} for one in ("s0", "s1")]
    path = program(tmp_path / "m.pt2", inputs)
    recipe = recipe_file.parse(infer.infer(str(path), WISHES, tmp_path))
    assert [one.shape for one in recipe.inputs] == [("batch", "batch"), ("batch_1", "batch")]
    (tmp_path / "m.pt2").write_text("text")
    with pytest.raises(RecipeError, match=r"not a program of torch\.export"):
        infer.infer(str(path), WISHES, tmp_path)


def test_a_kept_recipe_is_never_written_over(tmp_path: Path) -> None:
    infer.save_new("name: a\n", tmp_path / "recipe.yaml")
    with pytest.raises(UsageError, match="already exists"):
        infer.save_new("name: b\n", tmp_path / "recipe.yaml")
    assert (tmp_path / "recipe.yaml").read_text() == "name: a\n"
