"""The reference: what the model says, in a file that other steps and hosts read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import toy_graphs
from tiny_models import CODE, recipe

from enginefarm.documents.recipe import Recipe
from enginefarm.errors import CalibrationError, ExportError
from enginefarm.graph.samples import feeds
from enginefarm.graph.sources import source
from enginefarm.graph.verification.reference import make_reference, read_reference

LABELLED = CODE + (
    "\ndef labeled(batch_size):\n"
    "    for size in (3, 5):\n"
    "        yield {'x': np.ones((size, 3, 8, 8), 'f') * size, 'digit': np.arange(size)}\n"
)


def load(made: Recipe, folder: Path) -> torch.nn.Module:
    module = source("torch").load(made.source, made.root, folder).model
    assert isinstance(module, torch.nn.Module)
    return module


def test_batches_outputs_and_labels_come_back(tmp_path: Path) -> None:
    verification = {"data": {"callable": "code.py:labeled", "labels": "digit"}, "batches": 9}
    made = recipe(tmp_path, code=LABELLED, verification=verification)
    module = load(made, tmp_path)
    path = make_reference(made, module, tmp_path / "r.npz", outputs=("scores",))
    found = list(read_reference(path))
    corners = [batch for batch in found if batch.corner]
    found = [batch for batch in found if not batch.corner]
    assert [batch.inputs["x"].shape[0] for batch in found] == [3, 5]
    assert [batch.inputs["x"].shape[0] for batch in corners] == [1, 4, 8], "5 was in the data"
    assert found[1].labels is not None
    assert found[1].labels.tolist() == [0, 1, 2, 3, 4]
    for batch in (*found, *corners):
        with torch.no_grad():
            wanted = module(torch.from_numpy(batch.inputs["x"])).numpy()
        np.testing.assert_array_equal(batch.outputs["scores"], wanted)


def test_labels_of_which_the_model_gets_none_right_are_refused(tmp_path: Path) -> None:
    """A budget of top-1 accuracy could not be missed then."""
    data = {"callable": "code.py:labeled", "labels": "digit"}
    verification = {"data": data, "class_scores": ["scores"], "batches": 9}
    module = load(recipe(tmp_path), tmp_path)
    images = torch.stack([torch.full((3, 8, 8), float(size)) for size in (3, 5)])
    other = next(iter(set(range(5)) - set(module(images).argmax(1).tolist())))
    wrong = LABELLED.replace("np.arange(size)", f"np.full(size, {other})")
    made = recipe(tmp_path, code=wrong, verification=verification)
    with pytest.raises(CalibrationError, match="gets none of the labels right") as caught:
        make_reference(made, module, tmp_path / "r.npz", outputs=("scores",))
    assert "indices of the model's own classes" in caught.value.fix


def test_the_same_numbers_are_the_same_bytes(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    module = load(made, tmp_path)
    paths = [
        make_reference(made, module, tmp_path / name, outputs=("scores",))
        for name in ("a.npz", "b.npz")
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert next(iter(read_reference(paths[0]))).labels is None


def test_outputs_in_a_dict_or_tuple_are_counted(tmp_path: Path) -> None:
    code = CODE + (
        "\ndef two():\n"
        "    class Two(Small):\n"
        "        def forward(self, x):\n"
        "            y = super().forward(x)\n"
        "            return {'a': y, 'b': (y + 1,)}\n"
        "    return Two()\n"
    )
    made = recipe(
        tmp_path, code=code, source={"kind": "torch", "callable": "code.py:two"}, verification={}
    )
    module = load(made, tmp_path)
    path = make_reference(made, module, tmp_path / "r.npz", outputs=("first", "second"))
    batch = next(read_reference(path))
    np.testing.assert_allclose(batch.outputs["second"], batch.outputs["first"] + 1)
    with pytest.raises(ExportError, match="returns 2 tensors, its graph has 1 outputs"):
        make_reference(made, module, tmp_path / "r.npz", outputs=("first",))


def test_a_parameter_may_be_an_output(tmp_path: Path) -> None:
    code = CODE + (
        "\nclass Scaled(Small):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x), self.head.bias\n"
    )
    made = recipe(
        tmp_path,
        code=code,
        source={"kind": "torch", "callable": "code.py:Scaled"},
        outputs=["a", "b"],
        verification={},
    )
    module = load(made, tmp_path)
    path = make_reference(made, module, tmp_path / "r.npz", outputs=("a", "b"))
    np.testing.assert_array_equal(
        next(read_reference(path)).outputs["b"], module.state_dict()["head.bias"].numpy()
    )


def test_data_outside_every_profile_is_refused_with_the_dim(tmp_path: Path) -> None:
    made = recipe(tmp_path, verification={"batches": 1, "batch_size": 64})
    with pytest.raises(CalibrationError, match="fits no optimization profile") as caught:
        make_reference(made, load(made, tmp_path), tmp_path / "r.npz", outputs=("scores",))
    assert "profile default: batch=64 is not in 1..8" in caught.value.why


def test_feeds_of_any_size_are_made_of_real_values(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    sample = feeds.sample(made)
    large = feeds.sized(sample, made, {"batch": 10})["x"]
    assert large.shape == (10, 3, 8, 8)
    np.testing.assert_array_equal(large[8:], sample["x"][:2])
    labels = [label for label, _ in feeds.corners(made)]
    assert labels[0] == "profile default at min (batch=1)"
    assert len(labels) == 3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_reference_of_a_16_bit_model_is_computed_in_fp32(tmp_path: Path, dtype: str) -> None:
    code = CODE + (
        "\ndef low():\n"
        "    class Low(Small):\n"
        "        def forward(self, x):\n"
        f"            y = super().forward(x.to(torch.{dtype}))\n"
        "            return y.float() * 3, y\n"
        f"    return Low().to(torch.{dtype})\n"
    )
    source_of = {"kind": "torch", "callable": "code.py:low"}
    made = recipe(tmp_path, code=code, source=source_of, verification={})
    module = load(made, tmp_path)
    path = make_reference(made, module, tmp_path / "r.npz", outputs=("wide", "low"))
    batch = next(read_reference(path))
    x, kind = torch.from_numpy(batch.inputs["x"]), getattr(torch, dtype)
    assert next(module.parameters()).dtype == kind, "the model is left as it was"
    rounded = module(x)[0].detach().numpy()
    wanted = module.float()
    wanted.forward = type(wanted).__mro__[1].forward.__get__(wanted)
    exact = wanted(x).detach()
    np.testing.assert_allclose(batch.outputs["wide"], 3 * exact.numpy(), rtol=1e-6, atol=1e-6)
    assert np.abs(batch.outputs["wide"] - rounded).max() > 1e-5, "no step is rounded"
    low = batch.outputs["low"]
    assert low.dtype == {"float16": np.float16, "bfloat16": np.float32}[dtype]
    np.testing.assert_array_equal(low.astype("f"), exact.to(kind).float().numpy())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_autocast_computes_in_16_bits_is_computed_in_fp32(tmp_path: Path, dtype: str) -> None:
    code = CODE + (
        "\ndef mixed():\n"
        "    class Mixed(Small):\n"
        "        def forward(self, x):\n"
        f"            with torch.autocast('cpu', dtype=torch.{dtype}):\n"
        "                y = super().forward(x)\n"
        "            return y, y.float() * 3\n"
        "    return Mixed()\n"
    )
    source_of = {"kind": "torch", "callable": "code.py:mixed"}
    made = recipe(tmp_path, code=code, source=source_of, verification={})
    module = load(made, tmp_path)
    path = make_reference(made, module, tmp_path / "r.npz", outputs=("low", "wide"))
    batch = next(read_reference(path))
    exact = type(module).__mro__[1].forward(module, torch.from_numpy(batch.inputs["x"])).detach()
    np.testing.assert_allclose(batch.outputs["wide"], 3 * exact.numpy(), rtol=1e-6, atol=1e-6)
    low = exact.to(getattr(torch, dtype)).float().numpy()
    np.testing.assert_array_equal(batch.outputs["low"].astype("f"), low)


def test_a_scalar_output_stays_a_scalar(tmp_path: Path) -> None:
    code = CODE + (
        "\ndef one():\n"
        "    class One(Small):\n"
        "        def forward(self, x):\n"
        "            return super().forward(x).mean()\n"
        "    return One()\n"
    )
    source_of = {"kind": "torch", "callable": "code.py:one"}
    made = recipe(tmp_path, code=code, source=source_of, verification={}, outputs=["y"])
    path = make_reference(made, load(made, tmp_path), tmp_path / "r.npz", outputs=("y",))
    assert {batch.outputs["y"].shape for batch in read_reference(path)} == {()}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_casts_to_16_bits_in_a_file_are_not_charged_to_its_engines(
    tmp_path: Path, dtype: str
) -> None:
    """As ONNX Runtime's FP16 converter writes them around what it leaves in FP32."""
    text = f"""m (float[batch, 4] x) => (float[batch, 4] y) {{
        low = Cast <to = {10 if dtype == "float16" else 16}> (x)
        wide = Cast <to = 1> (low)
        y = Sigmoid (wide)
    }}"""
    made = toy_graphs.recipe(tmp_path, toy_graphs.made(text))
    path = make_reference(made, tmp_path / "m.onnx", tmp_path / "r.npz", outputs=("y",))
    for batch in read_reference(path):
        wanted = torch.from_numpy(batch.inputs["x"]).sigmoid().numpy()
        np.testing.assert_allclose(batch.outputs["y"], wanted, rtol=1e-6)
