"""The model itself first: the same numbers each time it is run and each time it is loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tiny_models import CODE, recipe

from enginefarm.documents.recipe import Recipe
from enginefarm.errors import ModelError
from enginefarm.graph.sources import source
from enginefarm.graph.verification.reference import (
    make_reference,
    read_reference,
    sizes_not_checked,
)

MODELS = (
    CODE
    + """
class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("state", torch.zeros(1))
def wrap(forward):
    made = Odd()
    made.forward = lambda x: forward(made, x)
    return made
def dropout():
    return wrap(lambda m, x: torch.nn.functional.dropout(x, 0.3))
def stateful():
    def forward(m, x):
        m.state = m.state + 1
        return x.mean((1, 2, 3)) + m.state
    return wrap(forward)
def unseeded():
    layer = nn.Conv2d(3, 2, 3)
    return wrap(lambda m, x: layer(x))
def seeded():
    torch.manual_seed(3)
    return unseeded()
def keeps():
    made = wrap(lambda m, x: m.kept(x))
    def kept(x):
        if not hasattr(made, "first"):
            made.first = x.mean()
        return x.mean((1, 2, 3)) - made.first
    made.kept = kept
    return made
def nan():
    return wrap(lambda m, x: torch.where(x == x.max(), torch.nan, x))
def minus_infinity():
    return wrap(lambda m, x: torch.where(x > 0, x, -torch.inf))
def picky():
    def forward(m, x):
        assert x.shape[0] % 2 == 0, "even batches alone"
        return x * 2
    return wrap(forward)
"""
)


def reference(tmp_path: Path, name: str, **changes: object) -> tuple[Recipe, Path]:
    made = recipe(
        tmp_path,
        code=MODELS,
        source={"kind": "torch", "callable": f"code.py:{name}"},
        **{"verification": {"batches": 2}, "outputs": ["y"], **changes},
    )

    def load():
        return source("torch").load(made.source, made.root, tmp_path).model

    path = make_reference(made, load(), tmp_path / "r.npz", outputs=("y",), again=load)
    return made, path


@pytest.mark.parametrize(
    ("name", "what", "why"),
    [
        ("dropout", "different numbers when it runs again: output 'y' differs", "random numbers"),
        (
            "stateful",
            "different numbers when it runs again: output 'y'",
            "changes its buffer state",
        ),
        (
            "unseeded",
            "different numbers each time it is loaded",
            "its weights are drawn at random each time",
        ),
        (
            "keeps",
            "different numbers after it has run on other inputs: output 'y' differs",
            "stores something of its first inputs",
        ),
        ("nan", "the model itself returns NaN in FP32: output 'y', batch 0", "first at index"),
    ],
)
def test_a_model_that_no_engine_could_match_is_an_error_of_its_own(
    tmp_path: Path, name: str, what: str, why: str
) -> None:
    with pytest.raises(ModelError, match=what) as caught:
        reference(tmp_path, name)
    assert why in caught.value.why
    assert caught.value.fix


@pytest.mark.parametrize("name", ["seeded", "minus_infinity"])
def test_seeds_and_infinities_are_fine(tmp_path: Path, name: str) -> None:
    assert len(list(read_reference(reference(tmp_path, name)[1]))) > 2


def test_sizes_at_which_the_model_itself_fails_are_named_as_not_checked(tmp_path: Path) -> None:
    profile = {"dims": {"batch": [2, 4, 8]}}
    _, path = reference(
        tmp_path, "picky", profiles=[profile], verification={"batches": 1, "batch_size": 2}
    )
    assert [batch.corner for batch in read_reference(path)][1:] == [
        "profile default at opt (batch=4)",
        "profile default at max (batch=8)",
        "profile default between its corners (batch=6)",
    ]
    (line,) = sizes_not_checked(path)
    assert "between its corners (batch=3)" in line
    assert "even batches alone" in line


@pytest.mark.parametrize("kind", ["RandomNormalLike", "Dropout"])
def test_an_onnx_file_that_draws_random_numbers_is_refused_by_node(
    tmp_path: Path, kind: str
) -> None:
    constant = helper.make_tensor("on", TensorProto.BOOL, [], [True])
    nodes = [
        helper.make_node("Constant", [], ["on"], "yes", value=constant),
        helper.make_node(kind, ["x", "", "on"] if kind == "Dropout" else ["x"], ["y"], "drawn"),
    ]
    shape = ["batch", 3, 8, 8]
    graph = helper.make_graph(
        nodes[0 if kind == "Dropout" else 1 :],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(made, tmp_path / "m.onnx")
    wanted = recipe(tmp_path, source={"kind": "onnx", "path": "m.onnx"}, verification={})
    with pytest.raises(ModelError, match=f"random numbers: node 'drawn' \\({kind}\\)"):
        make_reference(wanted, tmp_path / "m.onnx", tmp_path / "r.npz", outputs=("y",))


def test_the_reference_has_every_corner_and_an_odd_size(tmp_path: Path) -> None:
    made, path = reference(
        tmp_path,
        "seeded",
        profiles=[{"dims": {"batch": [1, 8, 16]}}],
        verification={"batches": 1, "batch_size": 8},
    )
    sizes = {batch.corner: batch.samples for batch in read_reference(path)}
    assert sizes == {
        "": 8,
        "profile default at min (batch=1)": 1,
        "profile default at max (batch=16)": 16,
        "profile default between its corners (batch=5)": 5,
    }, "8 is in the data"
    assert np.isfinite(next(read_reference(path)).outputs["y"]).all()
    assert made.verification.batch_size == 8
