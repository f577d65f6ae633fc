"""A recipe's own code, and files that may be hostile, in a child: one error, within limits."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from enginefarm.documents.recipe import Recipe
from enginefarm.errors import (
    CalibrationError,
    DiskFull,
    EnginefarmError,
    ExportError,
    PrecisionError,
    SlimError,
    SourceError,
)
from enginefarm.graph import work
from enginefarm.graph.order import Order
from enginefarm.graph.sources import onnx_file, source
from enginefarm.graph.verification.reference import sizes_not_checked
from enginefarm.recipes import file as recipe_file
from tests import tiny_models, tiny_recipe

DATA = """
import os, sys, time
import numpy as np


def data(seed, batch_size=4):
    {script}
    yield {{"images": np.zeros((batch_size, 3, 16, 16), np.float32)}}
"""


def made(folder: Path, script: str, **changes: object) -> Recipe:
    data = {"callable": "code.py:data"}
    path = tiny_recipe.write(
        folder, verification={"data": data, "class_scores": ["scores"]}, **changes
    )
    (folder / "code.py").write_text(DATA.format(script=script))
    return recipe_file.load(path)


def slim(recipe: Recipe, folder: Path) -> work.StageOutput:
    """The cheapest stage that runs a recipe's code."""
    order = Order(
        recipe=recipe, root=recipe.root, folder=folder / "w", onnx=recipe.root / "model.onnx"
    )
    order.folder.mkdir(exist_ok=True)
    return work.run("slim", order, what="slimming", error=SlimError)


def test_a_stage_leaves_files_in_its_folder(tmp_path: Path) -> None:
    before = set(sys.modules)
    found = slim(made(tmp_path, "pass"), tmp_path)
    assert onnx.load(found.files["model"]).graph.output[0].name == "scores"
    loaded = set(sys.modules) - before  # the recipe's code is imported by the child alone
    assert not [name for name in loaded if "enginefarm_" in name and "code" in name]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("sys.exit(0)", "SystemExit: 0"),
        ("os._exit(0)", "ended with status 0 and no result"),
        ("os.kill(os.getpid(), 11)", "killed by SIGSEGV"),
        ("os.kill(os.getpid(), 15)", "killed by SIGTERM"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("held = np.ones(1 << 45)", "MemoryError"),
        ("os.execv('/bin/true', ['true'])", "ended with status 0 and no result"),
    ],
)
def test_code_that_ends_its_process_is_one_error(tmp_path: Path, script: str, said: str) -> None:
    with pytest.raises(EnginefarmError, match=r"slimming of tiny|code\.py:data") as caught:
        slim(made(tmp_path, script), tmp_path)
    assert said in str(caught.value)


@pytest.mark.parametrize("script", ["while True: pass", "time.sleep(600)"])
def test_code_that_never_ends_is_ended(
    tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINEFARM_BUILD_TIMEOUT_S", "3")
    started = time.monotonic()
    with pytest.raises(SlimError, match="still running after its limit of 3 s"):
        slim(made(tmp_path, script), tmp_path)
    assert time.monotonic() - started < 30


def test_code_that_takes_all_the_memory_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINEFARM_BUILD_MEMORY_MIB", "600")
    script = "held = [np.ones(100 << 17) for _ in range(80)]"  # 8 GB
    with pytest.raises(SlimError, match="over its limit of 600 MiB, and was killed"):
        slim(made(tmp_path, script), tmp_path)


def constant() -> list[onnx.NodeProto]:
    """Folded when ONNX Runtime loads the graph."""
    fill = numpy_helper.from_array(np.ones(1, np.float32), "fill")
    return [helper.make_node("ConstantOfShape", ["sizes"], ["large"], value=fill)]


def doubled() -> list[onnx.NodeProto]:
    """Grows as it runs."""
    names = ["pooled", *(f"d{count}" for count in range(30)), "large"]
    pool = helper.make_node("ReduceMax", ["images", "axes"], ["pooled"])
    pairs = itertools.pairwise(names)
    return [pool, *(helper.make_node("Concat", [a, a], [b], axis=1) for a, b in pairs)]


def looped() -> list[onnx.NodeProto]:
    """A Loop of 2**40 trips."""
    types = (TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT)
    values = [
        helper.make_tensor_value_info(name, kind, [])
        for name, kind in zip(("trip", "go_on", "sum"), types, strict=True)
    ]
    results = [
        helper.make_tensor_value_info(name, kind, [])
        for name, kind in zip(("still", "next"), types[1:], strict=True)
    ]
    body = [
        helper.make_node("Identity", ["go_on"], ["still"]),
        helper.make_node("Neg", ["sum"], ["next"]),
    ]
    return [
        helper.make_node("ReduceMax", ["images"], ["top"], keepdims=0),
        helper.make_node(
            "Loop",
            ["trips", "", "top"],
            ["large"],
            body=helper.make_graph(body, "body", values, results),
        ),
    ]


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        (constant, "over its limit of 700 MiB, and was killed"),
        (doubled, "over its limit of 700 MiB, and was killed"),
        (looped, "still running after its limit of 4 s"),
    ],
)
def test_a_graph_that_asks_for_more_than_the_limits_is_ended(
    tmp_path: Path,
    nodes: Callable[[], list[onnx.NodeProto]],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = made(tmp_path, "pass")
    model = tiny_recipe.classifier()
    sizes = {"sizes": np.array([1 << 32]), "axes": np.array([1, 2, 3]), "trips": np.array(1 << 40)}
    model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in sizes.items()
    )
    model.graph.node[-1].output[0] = "before"
    model.graph.node.extend(
        [
            *nodes(),
            helper.make_node("ReduceMin", ["large"], ["least"], keepdims=0),
            helper.make_node("Add", ["before", "least"], ["scores"]),
        ]
    )
    onnx.save(model, tmp_path / "model.onnx")
    monkeypatch.setenv("ENGINEFARM_BUILD_MEMORY_MIB", "700")
    if nodes is looped:
        monkeypatch.setenv("ENGINEFARM_BUILD_TIMEOUT_S", "4")
    order = Order(recipe=recipe, root=tmp_path, folder=tmp_path / "w")
    order.folder.mkdir()
    with pytest.raises(ExportError, match="export of tiny") as caught:
        work.run("export", order, what="export", error=ExportError)
    assert said in str(caught.value)
    if nodes is not looped:
        assert "its last step was: export" in caught.value.why


def test_code_raises_an_error_of_ours_with_its_class(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"'code\.py:data' raised ZeroDivisionError"):
        slim(made(tmp_path, "1 / 0"), tmp_path)


def test_a_full_disk_is_that(tmp_path: Path) -> None:
    order = Order(
        recipe=made(tmp_path, "pass"), root=tmp_path, folder=tmp_path, onnx=Path("/dev/full")
    )
    script = f"raise OSError(28, 'No space left on device', {str(tmp_path)!r})"
    (tmp_path / "full.py").write_text(f"def data(seed):\n    {script}\n")
    with pytest.raises(DiskFull, match=f"the folder {tmp_path} has no room"):
        work.run("slim", _with_data(order, "full.py:data"), what="slimming", error=SlimError)


def _with_data(order: Order, name: str) -> Order:
    fields = order.recipe.model_dump(mode="json")
    fields["verification"]["data"]["callable"] = name
    return order.model_copy(update={"recipe": Recipe.model_validate(fields)})


def test_code_sees_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    script = (
        "seen = repr(dict(os.environ)).encode()\n"
        "    try: seen += open(f'/proc/{os.getppid()}/environ', 'rb').read()\n"
        "    except PermissionError: pass\n"
        "    raise RuntimeError('leaked' if b'hunter2' in seen else 'nothing')"
    )
    with pytest.raises(CalibrationError, match="nothing"):
        slim(made(tmp_path, script), tmp_path)


def test_threads_of_a_stage_do_not_spin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stages side by side would take the cores from each other."""
    monkeypatch.delenv("OMP_WAIT_POLICY")  # of this test process
    script = "raise RuntimeError('waiting is ' + os.environ['OMP_WAIT_POLICY'])"
    with pytest.raises(CalibrationError, match="waiting is PASSIVE"):
        slim(made(tmp_path, script), tmp_path)


def test_a_hostile_graph_is_opened_in_a_child_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every stage ends in one error, and this process never parses the file."""
    recipe = made(tmp_path, "pass", precisions=["fp16"])
    (tmp_path / "model.onnx").write_bytes(b"\x08\x0a\x3a\xff\xff\xff\xff\x0f location")

    def parsed(*_: object) -> None:
        raise AssertionError("a file was parsed in this process")

    monkeypatch.setattr(onnx, "load", parsed)
    monkeypatch.setattr(onnx.ModelProto, "ParseFromString", parsed, raising=False)
    folder = tmp_path / "w"
    folder.mkdir()
    order = Order(
        recipe=recipe,
        root=tmp_path,
        folder=folder,
        onnx=tmp_path / "model.onnx",
        precision="fp16",
    )
    stages = (("export", ExportError), ("slim", SlimError), ("convert", PrecisionError))
    for stage, kind in stages:
        with pytest.raises(EnginefarmError):
            work.run(stage, order, what=stage, error=kind)
    assert source("onnx").fingerprint(recipe.source, recipe.root)


def test_the_names_of_data_files_are_read_in_a_child(tmp_path: Path) -> None:
    tiny_recipe.write(tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    onnx.save(
        model,
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="m.bin",
        size_threshold=0,
    )
    assert onnx_file._data_files(tmp_path / "m.onnx") == ["m.bin"]
    assert onnx_file._data_files(tmp_path / "model.onnx") == []


def test_a_file_outside_the_folder_is_not_taken(tmp_path: Path) -> None:
    """Code of a recipe could name any file of this machine as its result."""
    script = (
        "import pathlib, json\n"
        "    answer = json.dumps({'files': {'model': '/etc/hostname'}})\n"
        "    pathlib.Path(os.environ['TMPDIR'], 'result.json').write_text(answer)\n"
        "    os._exit(0)"
    )
    with pytest.raises(SlimError, match="not a file in its folder"):
        slim(made(tmp_path, script), tmp_path)


def test_export_makes_the_reference_with_the_model_that_it_loaded(tmp_path: Path) -> None:
    recipe = made(tmp_path, "pass")
    order = Order(recipe=recipe, root=tmp_path, folder=tmp_path / "w")
    order.folder.mkdir()
    found = work.run("export", order, what="export", error=ExportError)
    with np.load(found.files["reference"]) as reference:
        assert reference["0000/output/scores"].shape[1] == 10
    assert found.values["outputs"] == ["scores"]
    assert os.path.commonpath([found.files["model"], order.folder]) == str(order.folder)


LARGEST_FIRST = """
class Largest(torch.nn.Module):
    # Keeps a table for the largest batch so far, and fails on the first when it is small.
    def __init__(self):
        super().__init__()
        self.layer = Small()
        self.seen = 0

    def forward(self, x):
        if not torch.compiler.is_compiling():
            self.seen = max(self.seen, int(x.shape[0]))
            if self.seen < 8 and int(x.shape[0]) == 1:
                raise RuntimeError("the largest batch comes first")
        return self.layer(x)
"""


def exported(recipe: Recipe, folder: Path) -> work.StageOutput:
    order = Order(recipe=recipe, root=recipe.root, folder=folder / "w")
    order.folder.mkdir()
    return work.run("export", order, what="export", error=ExportError)


def test_the_reference_is_made_beside_the_export(tmp_path: Path) -> None:
    """If the recipe names its outputs. The bytes equal those of a reference that is made alone."""
    recipe = tiny_models.recipe(tmp_path)
    found = exported(recipe, tmp_path).files["reference"]
    assert found.parent.name == "beside"
    alone = Order(recipe=recipe, root=tmp_path, folder=tmp_path / "alone", outputs=("scores",))
    alone.folder.mkdir()
    made_alone = work.run("reference", alone, what="reference", error=SourceError)
    assert found.read_bytes() == made_alone.files["reference"].read_bytes()


DIES_BESIDE = """

import multiprocessing, os
if multiprocessing.parent_process() is not None:
    """


@pytest.mark.parametrize("end", ["os._exit(3)", "raise SystemExit(3)", "raise ValueError('no')"])
def test_a_model_that_cannot_be_loaded_beside_its_export_has_a_reference(
    tmp_path: Path, end: str
) -> None:
    code = tiny_models.CODE + DIES_BESIDE + end
    found = exported(tiny_models.recipe(tmp_path, code), tmp_path).files["reference"]
    assert found.parent.name == "w"


def test_a_process_that_has_used_pytorch_is_not_forked(tmp_path: Path) -> None:
    """A fork has none of the threads that PyTorch has begun, and waits for them for ever."""
    import torch

    torch.nn.functional.conv2d(torch.zeros(8, 3, 64, 64), torch.zeros(16, 3, 3, 3))
    recipe = tiny_models.recipe(tmp_path)
    order = Order(recipe=recipe, root=recipe.root, folder=tmp_path / "w")
    order.folder.mkdir()
    made = work.StageOutput.model_validate_json(work.export(order.model_dump_json()))
    assert made.files["reference"].parent.name == "w"


def test_names_that_only_the_graph_knows_are_waited_for(tmp_path: Path) -> None:
    recipe = tiny_models.recipe(tmp_path, outputs=[], verification={"batches": 2})
    assert exported(recipe, tmp_path).files["reference"].parent.name == "w"


def test_a_size_that_a_new_model_does_not_take_is_checked_with_the_exported_one(
    tmp_path: Path,
) -> None:
    code = tiny_models.CODE.replace("\ndef data", LARGEST_FIRST + "\n\ndef data", 1)
    recipe = tiny_models.recipe(
        tmp_path,
        code,
        source={"kind": "torch", "callable": "code.py:Largest"},
        verification={"batches": 2, "batch_size": 4},
    )
    npz = exported(recipe, tmp_path).files["reference"]
    assert npz.parent.name == "w"
    assert not sizes_not_checked(npz)


def test_an_exported_program_has_its_reference_beside_the_export_too(tmp_path: Path) -> None:
    import torch

    names: dict[str, Any] = {}
    exec(tiny_models.CODE, names)
    batch = {0: torch.export.Dim("batch", min=1, max=8)}
    program = torch.export.export(
        names["small"]().eval(), (torch.zeros(4, 3, 8, 8),), dynamic_shapes=(batch,)
    )
    torch.export.save(program, tmp_path / "small.pt2")
    source = {"kind": "exported_program", "path": "small.pt2"}
    found = exported(tiny_models.recipe(tmp_path, source=source), tmp_path).files["reference"]
    assert found.parent.name == "beside"
