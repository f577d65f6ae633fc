"""A whole graph in a child process: what overflows, by node; which branches ran; corners."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_models import recipe

from enginefarm.documents.comparing import ComparisonRules
from enginefarm.documents.thresholds import DEFAULT_BUDGETS
from enginefarm.errors import PrecisionError
from enginefarm.graph.model import onnx_files
from enginefarm.graph.precisions import precision
from enginefarm.graph.verification import verify
from enginefarm.graph.verification.reference import make_reference

FLOAT, BOOL = TensorProto.FLOAT, TensorProto.BOOL


def value(name: str, dtype: int = FLOAT, shape: list | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, ["batch", 4] if shape is None else shape)


def save(folder: Path, nodes: list, weights: dict[str, np.ndarray] | None = None) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x")],
        [value("y")],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx_files.write(made, folder)


def verified(tmp_path: Path, model: Path, scale: float = 1.0, name: str = "fp16"):
    code = (
        "import numpy as np\n"
        "def data(seed):\n"
        "    r = np.random.default_rng(seed)\n"
        f"    while True: yield {{'x': ({scale} * r.normal(size=(4, 4))).astype('f')}}\n"
    )
    wanted = recipe(
        tmp_path,
        code=code,
        source={"kind": "onnx", "path": str(model.relative_to(tmp_path))},
        inputs=[{"name": "x", "shape": ["batch", 4]}],
        outputs=[],
        verification={"batches": 2},
    )
    reference = make_reference(wanted, model, tmp_path / "r.npz", outputs=("y",))
    made = precision(name).convert(model, tmp_path / name, wanted, ()).path
    return verify.verify_graph(made, reference, DEFAULT_BUDGETS[name], ComparisonRules())


def test_fp16_that_overflows_inside_is_refused_and_the_node_is_named(tmp_path: Path) -> None:
    """Case 02: small numbers come in and out, and 1e6 between them. ONNX Runtime's own FP16
    gives cosine 1.0 for it."""
    nodes = [
        helper.make_node("Mul", ["x", "big"], ["h"], "scale"),
        helper.make_node("Mul", ["h", "h"], ["square"], "the_square"),
        helper.make_node("Mul", ["square", "small"], ["z"], "back"),
        helper.make_node("Relu", ["z"], ["y"], "relu"),
    ]
    weights = {"big": np.float32([400]), "small": np.float32([1e-5])}
    found = verified(tmp_path, save(tmp_path / "m", nodes, weights), scale=3.0)
    assert not found.passed
    assert "first at node 'the_square' (Mul)" in found.over_budget[0]
    assert "FLOAT16 emulated" in found.runtime


def test_fp16_that_underflows_is_refused(tmp_path: Path) -> None:
    """Case 171."""
    nodes = [helper.make_node("Mul", ["x", "w"], ["h"]), helper.make_node("Mul", ["h", "w"], ["y"])]
    found = verified(tmp_path, save(tmp_path / "m", nodes, {"w": np.float32([1e-4])}))
    assert any("relative L2" in line for line in found.over_budget)


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_softmax_of_logits_that_16_bits_cannot_tell_apart_is_refused(
    tmp_path: Path, name: str
) -> None:
    """Case 162: around 9,000 the numbers of FP16 lie 8 apart, those of BF16 32."""
    nodes = [
        helper.make_node("Add", ["x", "far"], ["h"]),
        helper.make_node("Softmax", ["h"], ["y"]),
    ]
    model = save(tmp_path / "m", nodes, {"far": np.float32([9000])})
    assert not verified(tmp_path, model, scale=2.0, name=name).passed


def test_a_sound_graph_passes_at_every_corner_and_says_what_it_took(tmp_path: Path) -> None:
    weights = {"w": np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    found = verified(tmp_path, save(tmp_path / "m", nodes, weights))
    assert found.over_budget == ()
    assert found.corners == (
        "profile default at min (batch=1)",
        "profile default at max (batch=8)",
        "profile default between its corners (batch=3)",
    )
    assert found.samples == 8
    assert found.not_checked == ()
    assert found.seconds is not None
    assert found.seconds > 0


def test_a_graph_that_is_wrong_at_one_size_only_is_refused(tmp_path: Path) -> None:
    """Positions counted in FP16 are exact up to 2048 and wrong above: only max sees it."""
    folder = tmp_path / "m"
    model = save(folder, [helper.make_node("Identity", ["x"], ["y"])])
    reference = make_reference(
        recipe(
            tmp_path,
            code="import numpy as np\ndef data(seed):\n    yield {'x': np.ones((4, 4), 'f')}\n",
            source={"kind": "onnx", "path": "m/model.onnx"},
            inputs=[{"name": "x", "shape": ["batch", 4]}],
            outputs=[],
            verification={"batches": 1},
        ),
        model,
        tmp_path / "r.npz",
        outputs=("y",),
    )
    wrong = save(
        tmp_path / "wrong",
        [
            helper.make_node("Shape", ["x"], ["n"], start=0, end=1),
            helper.make_node("Equal", ["n", "eight"], ["is_max"]),
            helper.make_node("Neg", ["x"], ["minus"]),
            helper.make_node("Where", ["is_max", "minus", "x"], ["y"]),
        ],
        {"eight": np.int64([8])},
    )
    found = verify.verify_graph(wrong, reference, DEFAULT_BUDGETS["int8"], ComparisonRules())
    assert found.outputs[0].cosine == 1.0, "on the data it is right"
    assert all("at max (batch=8)" in line for line in found.over_budget)
    assert found.over_budget


def if_model() -> onnx.ModelProto:
    def body(name: str, op: str, inner: bool) -> onnx.GraphProto:
        nodes = [helper.make_node(op, ["x"], [f"{name}_y"])]
        if inner:
            leaf = [body(f"{name}_{i}", "Neg", False) for i in range(2)]
            nodes = [
                helper.make_node(
                    "If", ["b"], [f"{name}_y"], "inner", then_branch=leaf[0], else_branch=leaf[1]
                )
            ]
        return helper.make_graph(nodes, name, [], [value(f"{name}_y")])

    node = helper.make_node(
        "If",
        ["b"],
        ["y"],
        "choice",
        then_branch=body("then", "Abs", inner=False),
        else_branch=body("else", "Neg", inner=True),
    )
    graph = helper.make_graph([node], "g", [value("x"), value("b", BOOL, [])], [value("y")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_branches_that_no_data_took_are_named() -> None:
    taken = verify.BranchProbe(if_model())
    y = np.zeros((1, 4), np.float32)
    assert list(taken.note({"y": y, "b": np.array(True)})) == ["y"]
    assert taken.not_run() == [
        "the else branch of 'choice' (If): no data took it",
        "both branches of 'inner' (If inside another body): which ran is not known",
    ]
    taken.note({"y": y, "b": np.array(False)})
    assert len(taken.not_run()) == 1


def test_a_verification_has_the_limits_of_a_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save(tmp_path / "model", [helper.make_node("Relu", ["x"], ["y"])])
    monkeypatch.setenv("ENGINEFARM_BUILD_MEMORY_MIB", "30")
    with pytest.raises(PrecisionError, match=r"verification of .*over its limit of 30 MiB"):
        verified(tmp_path, model)
