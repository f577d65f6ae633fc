"""Export: dynamic, the same bytes twice, and honest about dims."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tiny_models import CODE, images, recipe

from enginefarm.documents.recipe import Recipe
from enginefarm.errors import CalibrationError, ExportError, SourceError, ToolchainError
from enginefarm.graph import export, ort
from enginefarm.recipes.file import parse


def exported(made: Recipe, folder: Path) -> export.ExportReport:
    return export.export_onnx(made, folder)


def run(path: Path, feeds: dict) -> dict:
    return ort.run(
        ort.session(path, error=ExportError, what="test"), feeds, error=ExportError, what="test"
    )


def test_the_graph_computes_what_the_module_does_at_other_sizes(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    report = exported(made, tmp_path / "out")
    assert report.path == tmp_path / "out" / "model.onnx"
    assert (report.opset, report.outputs, report.data) == (20, ("scores",), None)
    feeds = images(7)
    with torch.no_grad():
        wanted = report.model(torch.from_numpy(feeds["x"])).numpy()
    np.testing.assert_allclose(run(report.path, feeds)["scores"], wanted, rtol=1e-5, atol=1e-6)


def test_a_dim_that_the_model_fixes_is_named(tmp_path: Path) -> None:
    made = recipe(tmp_path, source={"kind": "torch", "callable": "code.py:fixed_batch"})
    with pytest.raises(ExportError, match="dim 'batch' of 'x' is not dynamic") as caught:
        exported(made, tmp_path / "out")
    assert "\x1b[" not in str(caught.value)
    assert len(str(caught.value)) < 1500


def test_nan_weights_name_the_tensor(tmp_path: Path) -> None:
    made = recipe(tmp_path, source={"kind": "torch", "callable": "code.py:broken"})
    with pytest.raises(ExportError, match=r"tensor 'conv\.weight' holds NaN"):
        exported(made, tmp_path / "out")


def test_an_input_that_forward_does_not_take(tmp_path: Path) -> None:
    inputs = [{"name": "x", "shape": ["batch", 3, 8, 8]}, {"name": "mask", "shape": ["batch"]}]
    code = CODE.replace('{"x": random', '{"mask": np.ones(batch_size, np.float32), "x": random')
    made = recipe(tmp_path, code=code, inputs=inputs)
    with pytest.raises(ExportError, match=r"Small\.forward does not take these 2 inputs"):
        exported(made, tmp_path / "out")


def test_outputs_must_be_counted_right(tmp_path: Path) -> None:
    made = recipe(tmp_path, outputs=["scores", "more"])
    with pytest.raises(ExportError, match="the graph has 1 outputs, the recipe names 2"):
        exported(made, tmp_path / "out")


def test_code_that_cannot_be_exported_is_one_error(tmp_path: Path) -> None:
    code = CODE + (
        "\ndef branchy():\n"
        "    class Branchy(Small):\n"
        "        def forward(self, x):\n"
        "            return super().forward(x) if x.sum() > 0 else x\n"
        "    return Branchy()\n"
    )
    made = recipe(tmp_path, code=code, source={"kind": "torch", "callable": "code.py:branchy"})
    with pytest.raises(ExportError, match="failed for small") as caught:
        exported(made, tmp_path / "out")
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("raise RuntimeError('no weights here')", "raised RuntimeError"),
        ("return 3", "gave int"),
        ("return undefined", "raised NameError"),
    ],
)
def test_a_callable_that_gives_no_module(tmp_path: Path, body: str, match: str) -> None:
    code = CODE + f"\ndef bad():\n    {body}\n"
    made = recipe(tmp_path, code=code, source={"kind": "torch", "callable": "code.py:bad"})
    with pytest.raises(SourceError, match=rf"source\.callable: 'code\.py:bad' {match}"):
        exported(made, tmp_path / "out")


@pytest.mark.parametrize(
    ("code", "match"),
    [("import no_such_package", "cannot be imported"), ("syntax error", "importing")],
)
def test_a_file_that_cannot_be_imported(tmp_path: Path, code: str, match: str) -> None:
    made = recipe(tmp_path, code=code)
    with pytest.raises(SourceError, match=match):
        exported(made, tmp_path / "out")


def test_data_that_does_not_fit_is_a_calibration_error(tmp_path: Path) -> None:
    made = recipe(tmp_path, code=CODE.replace("3, 8, 8)).astype", "3, 9, 9)).astype"))
    with pytest.raises(CalibrationError, match="axis 2 is 9, not 8"):
        exported(made, tmp_path / "out")


def onnx_recipe(tmp_path: Path, **changes: object) -> Recipe:
    """The small model as an ONNX source."""
    path = exported(recipe(tmp_path), tmp_path / "made").path
    path.rename(tmp_path / "mine.onnx")
    return recipe(tmp_path, source={"kind": "onnx", "path": "mine.onnx"}, **changes)


def test_an_onnx_source_is_taken_as_it_is(tmp_path: Path) -> None:
    made = onnx_recipe(tmp_path)
    report = exported(made, tmp_path / "out")
    assert report.outputs == ("scores",)
    feeds = images(3)
    wanted = run(tmp_path / "mine.onnx", feeds)["scores"]
    np.testing.assert_array_equal(run(report.path, feeds)["scores"], wanted)


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        ([{"name": "picture", "shape": ["batch", 3, 8, 8]}], "inputs: the graph has x"),
        ([{"name": "x", "shape": ["batch", 3, 16, 16]}], "dim 2 of 'x' is fixed to 8"),
        ([{"name": "x", "shape": ["batch", 3, 64]}], "'x' has 4 dims in the graph, 3"),
        ([{"name": "x", "dtype": "float16", "shape": ["batch", 3, 8, 8]}], "'x' is float32"),
    ],
)
def test_an_onnx_source_whose_inputs_are_others(tmp_path: Path, inputs: list, match: str) -> None:
    shape = [4 if isinstance(dim, str) else dim for dim in inputs[0]["shape"]]
    dtype = inputs[0].get("dtype", "float32")
    code = (
        "import numpy as np\n"
        "def data(seed):\n"
        f"    while True: yield {{{inputs[0]['name']!r}: np.ones({shape}, '{dtype}')}}\n"
    )
    made = onnx_recipe(tmp_path)
    made = recipe(tmp_path, code=code, inputs=inputs, source={"kind": "onnx", "path": "mine.onnx"})
    with pytest.raises(SourceError, match=match):
        exported(made, tmp_path / "out")


def test_an_onnx_graph_whose_dynamic_dim_is_a_lie_is_refused_at_that_corner(tmp_path: Path) -> None:
    """It says `n`, and reshapes to 4: a TensorRT build would not notice."""
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["shape"], value_ints=[4, 192]),
            helper.make_node("Reshape", ["x", "shape"], ["scores"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 192])],
    )
    made = recipe(tmp_path, source={"kind": "onnx", "path": "liar.onnx"})
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10),
        tmp_path / "liar.onnx",
    )
    with pytest.raises(SourceError, match=r"profile default at min \(batch=1\): a dim is not as"):
        exported(made, tmp_path / "out")


def test_an_exported_program_is_a_source(tmp_path: Path) -> None:
    made = recipe(tmp_path, source={"kind": "exported_program", "path": "small.pt2"})
    module = exported(recipe(tmp_path), tmp_path / "made").model
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(module, (torch.ones(4, 3, 8, 8),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "small.pt2")
    made = recipe(tmp_path, source={"kind": "exported_program", "path": "small.pt2"})
    report = exported(made, tmp_path / "out")
    feeds = images(5)
    wanted = module(torch.from_numpy(feeds["x"])).detach().numpy()
    np.testing.assert_allclose(run(report.path, feeds)["scores"], wanted, rtol=1e-5, atol=1e-6)


def test_the_tool_is_known_without_torch(tmp_path: Path) -> None:
    recipe(tmp_path)
    script = (
        "import sys; from pathlib import Path; from enginefarm.recipes import file as recipe_file;"
        "from enginefarm.graph import export, slim;"
        "made = recipe_file.load(Path(sys.argv[1]));"
        "print(export.export_tool(made).name, slim.slim_tool().name);"
        "print(sorted({'torch', 'onnx', 'onnxslim'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["torch.onnx onnxslim", "[]"]


def test_a_pytorch_source_without_torch_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(export, "version", version)
    made = parse(
        "name: m\nsource: { kind: torch, callable: 'model.py:build' }\n"
        "inputs: [{ name: x, shape: [1, 3] }]\ngpus: [t4]\n"
    )
    with pytest.raises(ToolchainError, match="torch is not installed") as refused:
        export.export_tool(made)
    assert "enginefarm[farm,torch]" in refused.value.fix
