"""Export: dynamic, the same bytes twice, and honest about dims."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from tiny_models import CODE, images, recipe
from toy_graphs import run

from enginefarm.documents.recipe import Recipe
from enginefarm.errors import (
    CalibrationError,
    ExportError,
    ModelError,
    SourceError,
    ToolchainError,
)
from enginefarm.graph import work
from enginefarm.graph.exporting import export, tracing, use
from enginefarm.graph.order import Order
from enginefarm.graph.verification import faithful, reference
from enginefarm.recipes.file import parse


def exported(made: Recipe, folder: Path) -> export.Exported:
    return export.export_onnx(made, folder)


def test_the_graph_computes_what_the_module_does_at_other_sizes(tmp_path: Path) -> None:
    weights = {f"model.{k}": v + 1 for k, v in recipe_weights().items()}
    torch.save({"loss.weight": torch.ones(2), **weights}, tmp_path / "w.pt")
    source = {"kind": "torch", "callable": "code.py:small", "checkpoint": "w.pt"}
    report = exported(recipe(tmp_path, source=source), tmp_path / "out")
    assert report.path == tmp_path / "out" / "model.onnx"
    assert report.notes[0].endswith("1 other in it is not used: loss.weight")
    assert (report.opset, report.outputs) == (20, ("scores",))
    feeds = images(7)
    with torch.no_grad():
        wanted = report.model(torch.from_numpy(feeds["x"])).numpy()
    np.testing.assert_allclose(run(report.path, feeds)["scores"], wanted, rtol=1e-5, atol=1e-6)


def recipe_weights() -> dict[str, torch.Tensor]:
    scope: dict = {}
    exec(CODE, scope)
    return scope["small"]().state_dict()


PARAMETRIZED = """

def parametrized(kind):
    from torch.nn.utils import parametrizations

    model = Small()
    for part in (model.conv, model.head):
        getattr(parametrizations, kind)(part)
    return model
"""


@pytest.mark.parametrize("kind", ["orthogonal", "spectral_norm", "weight_norm"])
def test_weights_that_are_computed_from_others_are_constants(tmp_path: Path, kind: str) -> None:
    """An orthogonal weight is a matrix exponential, which ONNX has no operator for."""
    source = {"kind": "torch", "callable": "code.py:parametrized", "arguments": {"kind": kind}}
    report = exported(recipe(tmp_path, CODE + PARAMETRIZED, source=source), tmp_path / "out")
    feeds = images(3)
    scope: dict = {}
    exec(CODE + PARAMETRIZED, scope)
    with torch.no_grad():
        wanted = scope["parametrized"](kind).eval()(torch.from_numpy(feeds["x"])).numpy()
    np.testing.assert_allclose(run(report.path, feeds)["scores"], wanted, rtol=1e-4, atol=1e-5)
    assert "Conv" in {node.op_type for node in onnx.load(report.path).graph.node}


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
        ("return 3", "returned int"),
        ("return undefined", "raised NameError"),
        (
            "return torch.jit.script(nn.Linear(2, 2))",
            r"returned a module that is TorchScript \(RecursiveScriptModule\)",
        ),
        (
            "return nn.Sequential(torch.ao.nn.quantized.dynamic.Linear(2, 2))",
            "returned a module whose 0 is quantized",
        ),
        (
            "return nn.Sequential(torch.ao.quantization.FakeQuantize())",
            "returned a module whose 0 is quantized",
        ),
        (
            "return nn.Linear(2, 2, device='meta')",
            "returned a module whose tensors have no values",
        ),
    ],
)
def test_what_is_not_a_model_that_can_be_exported(tmp_path: Path, body: str, match: str) -> None:
    code = CODE + f"\ndef bad():\n    {body}\n"
    made = recipe(tmp_path, code=code, source={"kind": "torch", "callable": "code.py:bad"})
    with pytest.raises(SourceError, match=rf"source\.callable: 'code\.py:bad' {match}"):
        exported(made, tmp_path / "out")


def test_an_instance_is_not_called(tmp_path: Path) -> None:
    made = recipe(
        tmp_path,
        code=CODE + "\nmodel = Small()\n",
        source={"kind": "torch", "callable": "code.py:model"},
    )
    with pytest.raises(SourceError, match=r"is an nn\.Module, not a function"):
        exported(made, tmp_path / "out")


def test_a_relative_file_of_the_code_says_where_it_is_looked_for(tmp_path: Path) -> None:
    code = CODE + "\ndef weights():\n    return torch.load('w.pt')\n"
    made = recipe(tmp_path, code=code, source={"kind": "torch", "callable": "code.py:weights"})
    (tmp_path / "w.pt").write_bytes(b"")
    with pytest.raises(SourceError, match="raised FileNotFoundError") as caught:
        exported(made, tmp_path / "out")
    assert "Path(__file__).with_name('w.pt')" in caught.value.fix


def test_a_default_dtype_does_not_reach_the_next_load(tmp_path: Path) -> None:
    code = CODE + (
        "\ndef half():\n    made = Small()\n    torch.set_default_dtype(torch.float16)\n"
        "    return made\n"
    )
    made = recipe(tmp_path, code=code, source={"kind": "torch", "callable": "code.py:half"})
    try:
        for _ in range(2):
            loaded = export.load(made, tmp_path / "out").model
            assert {value.dtype for value in loaded.parameters()} == {torch.float32}
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_compiled_model_runs_as_it_is_written(tmp_path: Path) -> None:
    """Inductor would compile it for each size, in minutes, and needs a compiler of C++."""
    code = CODE + "\ndef compiled():\n    return torch.compile(Small(), backend=refuses)\n"
    code += "\ndef refuses(graph, inputs):\n    raise RuntimeError('it was compiled')\n"
    made = recipe(tmp_path, code=code, source={"kind": "torch", "callable": "code.py:compiled"})
    loaded: Any = export.load(made, tmp_path / "out").model
    assert loaded(torch.zeros(2, 3, 8, 8)).shape == (2, 5)


def test_a_bfloat16_model_that_has_no_valid_graph_is_to_be_returned_in_fp32(tmp_path: Path) -> None:
    """Conv takes bfloat16 from opset 22 on only."""
    code = CODE + (
        "\nclass Low(Small):\n    def forward(self, x):\n"
        "        return super().forward(x.bfloat16()).float()\n"
        "\ndef low():\n    return Low().bfloat16()\n"
    )
    made = recipe(tmp_path, code=code, source={"kind": "torch", "callable": "code.py:low"})
    with pytest.raises(ExportError, match="not a valid ONNX model") as caught:
        exported(made, tmp_path / "out")
    assert "model.float()" in caught.value.fix


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


@pytest.fixture(scope="module")
def small_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model as an ONNX file, exported once."""
    folder = tmp_path_factory.mktemp("small")
    return exported(recipe(folder), folder / "made").path


def onnx_recipe(tmp_path: Path, small_onnx: Path, **changes: object) -> Recipe:
    """The small model as an ONNX source."""
    shutil.copyfile(small_onnx, tmp_path / "mine.onnx")
    return recipe(tmp_path, source={"kind": "onnx", "path": "mine.onnx"}, **changes)


def test_an_onnx_source_is_taken_as_it_is(tmp_path: Path, small_onnx: Path) -> None:
    made = onnx_recipe(tmp_path, small_onnx)
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
def test_an_onnx_source_whose_inputs_are_others(
    tmp_path: Path, small_onnx: Path, inputs: list, match: str
) -> None:
    shape = [4 if isinstance(dim, str) else dim for dim in inputs[0]["shape"]]
    dtype = inputs[0].get("dtype", "float32")
    code = (
        "import numpy as np\n"
        "def data(seed):\n"
        f"    while True: yield {{{inputs[0]['name']!r}: np.ones({shape}, '{dtype}')}}\n"
    )
    made = onnx_recipe(tmp_path, small_onnx)
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
        "from enginefarm.graph.exporting import use;"
        "made = recipe_file.load(Path(sys.argv[1]));"
        "print(use.export_tool(made).name, use.slim_tool().name);"
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

    monkeypatch.setattr(use, "version", version)
    made = parse(
        "name: m\nsource: { kind: torch, callable: 'model.py:build' }\n"
        "inputs: [{ name: x, shape: [1, 3] }]\ngpus: [t4]\n"
    )
    with pytest.raises(ToolchainError, match="torch is not installed") as refused:
        use.export_tool(made)
    assert "enginefarm[farm,torch]" in refused.value.fix


FORMS = """
import numpy as np
import torch
from dataclasses import dataclass
from torch import nn
from torch.nn import functional as F


@dataclass
class Output:
    scores: torch.Tensor
    hidden: torch.Tensor


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 4)


class Keywords(Base):
    def forward(self, *, x, scale):
        return self.layer(x) * scale


class OneDict(Base):
    def forward(self, features):
        return {"y": self.layer(features["x"]) * features["scale"]}


class OneList(Base):
    def forward(self, features: "list[torch.Tensor]"):
        x, scale = features
        return self.layer(x) * scale


class OneTuple(Base):
    def forward(self, features):
        x, scale = features
        return x + scale


class OnAGpu(Base):
    def forward(self, x, scale):
        raise RuntimeError("Torch not compiled with CUDA enabled")


class WithNumbers(Base):
    def forward(self, x, scale):
        return [{"y": self.layer(x) * scale, "classes": 4, "name": "scores", "loss": None}]


class AnyNumber(Base):
    def forward(self, *given):
        return self.layer(given[0]) * given[1]


class FirstAndRest(Base):
    def forward(self, x, *rest):
        return self.layer(x) * rest[0]


class InPlace(Base):
    def forward(self, x, scale):
        x -= 1
        x *= scale
        return self.layer(x)


class Dataclass(Base):
    def forward(self, x, scale):
        hidden = self.layer(x)
        return Output(hidden * scale, hidden)


class Windows(Base):
    def forward(self, x, scale):
        q = self.layer(x)[:, None, None, :, None] * scale
        return F.scaled_dot_product_attention(q, q, q).flatten(1)


class Ordered(Base):
    def forward(self, scale, x=None, offset=None):
        y = self.layer(x) * scale
        return y if offset is None else y + offset


class Misplaced(Base):
    def forward(self, images, offset=None, scale=None):
        y = self.layer(images)
        return y if scale is None else y * scale


class Nothing(Base):
    def forward(self, x, scale):
        return {"loss": None}


class Opaque(Base):
    def forward(self, x, scale):
        class DynamicCache:
            y = x
        return DynamicCache()


def data(seed, batch_size=4):
    random = np.random.default_rng(seed)
    f = lambda *shape: random.normal(size=shape).astype(np.float32)
    while True:
        yield {"scale": np.array(1.5, np.float32), "x": f(batch_size, 8)}
"""
FORM_INPUTS = [{"name": "x", "shape": ["batch", 8]}, {"name": "scale", "shape": []}]


def form(tmp_path: Path, name: str, **changes: object) -> Recipe:
    source = {"kind": "torch", "callable": f"code.py:{name}"}
    changes = {"outputs": [], "verification": {"batches": 1}, **changes}
    return recipe(tmp_path, code=FORMS, source=source, inputs=FORM_INPUTS, **changes)


@pytest.mark.parametrize(
    "name",
    [
        *("Keywords", "OneDict", "AnyNumber", "FirstAndRest", "InPlace", "Dataclass", "Windows"),
        *("Ordered", "OneList", "WithNumbers"),
    ],
)
def test_each_form_of_forward_exports_and_has_a_reference(tmp_path: Path, name: str) -> None:
    made = form(tmp_path, name)
    report = exported(made, tmp_path / "out")

    if name == "Windows":
        assert "aten.scaled_dot_product_attention" in report.notes[-1], "it is said"
    path = reference.make_reference(
        made, report.model, tmp_path / "reference.npz", outputs=report.outputs
    )
    for batch in reference.read_reference(path):
        assert batch.inputs["scale"].shape == (), "a scalar stays one"
        for output, array in run(report.path, batch.inputs).items():
            np.testing.assert_allclose(array, batch.outputs[output], rtol=1e-4, atol=1e-5)


def test_a_graph_that_differs_on_random_inputs_may_choose_among_equal_values(
    tmp_path: Path,
) -> None:
    made = recipe(
        tmp_path, verification={"data": {"random": True}}, calibration=None, precisions=["fp16"]
    )
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[n, 3, 8, 8] x) => (float[n, 3, 8, 8] y) '
        "{ y = Neg (x) }"
    )
    onnx.save(model, tmp_path / "m.onnx")
    batch = reference.ReferenceBatch(images(), {"y": images()["x"]}, None)
    with zipfile.ZipFile(tmp_path / "r.npz", "w") as archive:
        reference.write_batch(archive, 0, batch)
    with pytest.raises(ExportError, match="does not compute what the model computes") as caught:
        faithful.require(tmp_path / "m.onnx", tmp_path / "r.npz", made, None)
    assert "give your own `verification.data`" in caught.value.fix


def test_a_name_that_belongs_to_another_argument_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="'scale' is listed in place of 'offset'") as caught:
        exported(form(tmp_path, "Misplaced"), tmp_path / "out")
    assert "forward takes images, offset, scale" in caught.value.why


def test_one_argument_for_several_inputs_says_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="does not take these 2 inputs") as caught:
        exported(form(tmp_path, "OneTuple"), tmp_path / "out")
    assert "`features: list[Tensor]`" in caught.value.fix


def test_a_model_that_asks_for_a_gpu_is_told_that_it_runs_on_a_cpu(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be run at any size") as caught:
        exported(form(tmp_path, "OnAGpu"), tmp_path / "out")
    assert "exported on a CPU" in caught.value.fix


def test_a_forward_that_returns_no_tensor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"returns no tensor: it returns \{'loss': None\}"):
        exported(form(tmp_path, "Nothing"), tmp_path / "out")


@pytest.mark.parametrize("annotation", ["dict", "dict[str, torch.Tensor]", "'Dict[str, int]'"])
def test_one_input_in_a_dict(tmp_path: Path, annotation: str) -> None:
    code = CODE + (
        "\nclass Named(Small):\n"
        f"    def forward(self, features: {annotation}):\n"
        "        return super().forward(features['x'])\n"
    )
    made = recipe(tmp_path, code=code, source={"kind": "torch", "callable": "code.py:Named"})
    assert exported(made, tmp_path / "out").outputs == ("scores",)


WRONGLY_EXPORTED = (
    CODE
    + """
class Pooled(Small):
    def forward(self, x):
        return nn.functional.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)


class Seeded(Small):
    def forward(self, x):
        torch.manual_seed(0)
        return super().forward(x + torch.randn(x.shape))


class Training(Small):
    def train(self, mode=True):
        super().train(mode)
        self.norm.train()
        return self
"""
)


@pytest.mark.parametrize(
    ("name", "dim", "where", "why"),
    [
        ("Pooled", "height", "between its corners (height=15)", "holds for some sizes"),
        ("Training", 8, "the sizes of the verification data", "norm (BatchNorm2d) is in training"),
    ],
)
def test_a_graph_that_the_exporter_wrote_as_another_function_is_one_error(
    tmp_path: Path, name: str, dim: str | int, where: str, why: str
) -> None:
    made = recipe(
        tmp_path,
        code=WRONGLY_EXPORTED,
        source={"kind": "torch", "callable": f"code.py:{name}"},
        inputs=[{"name": "x", "shape": [4, 3, dim, 8]}],
        profiles=[{"dims": {dim: [8, 8, 20]} if isinstance(dim, str) else {}}],
        verification={"batches": 1, "batch_size": 4},
    )
    order = Order(recipe=made, root=made.root, folder=tmp_path / "out")
    with pytest.raises(ExportError, match="exporter wrote does not compute") as caught:
        work.export(order.model_dump_json())
    assert where in caught.value.why
    assert why in caught.value.why


def test_a_graph_that_runs_at_no_size_is_not_called_a_matter_of_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exporter writes an LSTM with a projection as one without, if it is left to it."""
    monkeypatch.setattr(tracing, "_projected", lambda lstm, *arguments: lstm(*arguments))
    code = CODE + (
        "\nclass Projected(Small):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.lstm = nn.LSTM(8, 8, proj_size=4, batch_first=True)\n"
        "    def forward(self, x):\n"
        "        return self.lstm(x[:, 0])[0]\n"
    )
    made = recipe(tmp_path, code=code, source={"kind": "torch", "callable": "code.py:Projected"})
    with pytest.raises(ExportError, match="runs at none of the recipe's sizes") as caught:
        exported(made, tmp_path / "out")
    assert "LSTM" in caught.value.why
    assert "other operators" in caught.value.fix


def test_a_forward_that_seeds_its_own_random_numbers_is_refused(tmp_path: Path) -> None:
    made = recipe(
        tmp_path,
        code=WRONGLY_EXPORTED,
        source={"kind": "torch", "callable": "code.py:Seeded"},
        verification={"batches": 1},
    )
    order = Order(recipe=made, root=made.root, folder=tmp_path / "out")
    with pytest.raises(ModelError, match=r"random numbers: node .* \(RandomNormal"):
        work.export(order.model_dump_json())


def test_what_forward_returns_is_named_when_it_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="forward returns DynamicCache, which cannot") as caught:
        exported(form(tmp_path, "Opaque"), tmp_path / "out")
    assert "use_cache = False" in caught.value.fix


CACHE = """
import numpy as np
import torch
from torch import nn


class Cache(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x, past, mask):
        keys = torch.cat([past, self.layer(x)], 1)
        return keys * mask[:, :, None]


class Sized(nn.Module):
    def forward(self, x, size):
        height = size.tolist()[0]
        torch._check(height >= 2)
        torch._check(height <= 64)
        return nn.functional.interpolate(x[:, None], size=(height, 4), mode="nearest")


def data(seed):
    ones = lambda *shape: np.ones(shape, np.float32)
    while True:
        yield {"x": ones(2, 1, 4), "past": ones(2, 7, 4), "mask": ones(2, 8)}


def sized(seed):
    while True:
        yield {"x": np.ones((1, 4, 4), np.float32), "size": np.array([8], np.int64)}
"""


def test_sizes_that_belong_together_are_taken_as_the_recipe_writes_them(tmp_path: Path) -> None:
    made = recipe(
        tmp_path,
        code=CACHE,
        source={"kind": "torch", "callable": "code.py:Cache"},
        inputs=[
            {"name": "x", "shape": ["batch", "new", 4]},
            {"name": "past", "shape": ["batch", "past", 4]},
            {"name": "mask", "shape": ["batch", "total"]},
        ],
        outputs=["keys"],
        verification={"batches": 1},
        profiles=[
            {"dims": {"batch": [1, 2, 4], "new": [1, 1, 3], "past": [1, 7, 9], "total": [2, 8, 12]}}
        ],
    )
    report = exported(made, tmp_path / "out")
    shape = onnx.load(report.path).graph.input[0].type.tensor_type.shape
    assert all(dim.dim_param for dim in shape.dim[:2])


def test_an_input_whose_values_are_sizes_is_refused_by_name(tmp_path: Path) -> None:
    made = recipe(
        tmp_path,
        code=CACHE,
        source={"kind": "torch", "callable": "code.py:Sized"},
        inputs=[
            {"name": "x", "shape": [1, 4, 4]},
            {"name": "size", "dtype": "int64", "shape": [1]},
        ],
        outputs=["y"],
        profiles=[{"dims": {}}],
        verification={"data": {"callable": "code.py:sized"}, "batches": 1},
    )
    with pytest.raises(ExportError, match="values of 'size' decide a shape") as caught:
        exported(made, tmp_path / "out")
    assert "Resize" in caught.value.why


def test_a_failure_names_the_operator_and_the_line(tmp_path: Path) -> None:
    code = CODE + (
        "\ndef odd():\n"
        "    class Odd(Small):\n"
        "        def forward(self, x):\n"
        "            y = super().forward(x)[:, :4].reshape(-1, 2, 2)\n"
        "            return torch.linalg.eigvals(y).real\n"
        "    return Odd()\n"
    )
    made = recipe(tmp_path, code=code, source={"kind": "torch", "callable": "code.py:odd"})
    with pytest.raises(ExportError, match=r"the operator aten\.linalg_eig") as caught:
        exported(made, tmp_path / "out")
    assert "batch" in caught.value.fix
