"""An FP32 graph passes with the error that FP32 rounding causes, and fails with a larger one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_models import recipe

from enginefarm.documents.comparing import (
    ComparisonRules,
    OutputComparison,
    Part,
    judge,
    with_rounding,
)
from enginefarm.documents.manifest import GraphVerification
from enginefarm.documents.thresholds import DEFAULT_BUDGETS, Budget, completed
from enginefarm.graph.model import onnx_files
from enginefarm.graph.verification import rounding, verify
from enginefarm.graph.verification.reference import make_reference

DATA = """
import numpy as np
def data(seed):
    r = np.random.default_rng(seed)
    while True: yield {"x": r.normal(size=(4, 256)).astype("f")}
"""
DEFAULT = DEFAULT_BUDGETS["fp32"]


def weights(scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Two matrices that nearly cancel: the difference of their products is mostly rounding."""
    random = np.random.default_rng(3)
    one = random.normal(size=(256, 8)).astype("f")
    return one, (one + scale * 1e-3 * random.normal(size=one.shape)).astype("f")


def model(folder: Path, *, order: np.ndarray | None = None, scale: float = 1.0) -> Path:
    """y = x @ a - x @ b, its sums in that order."""
    order = np.arange(256) if order is None else order
    one, other = (matrix[order] for matrix in weights(scale))
    nodes = [
        helper.make_node("Gather", ["x", "order"], ["g"], "gather", axis=1),
        helper.make_node("MatMul", ["g", "a"], ["p"], "first"),
        helper.make_node("MatMul", ["g", "b"], ["q"], "second"),
        helper.make_node("Sub", ["p", "q"], ["y"], "difference"),
    ]
    values = {"order": order.astype(np.int64), "a": one, "b": other}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 256])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(array, name) for name, array in values.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx_files.write(made, folder)


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    source = model(tmp_path / "source")
    asked = recipe(
        tmp_path,
        code=DATA,
        source={"kind": "onnx", "path": "source/model.onnx"},
        inputs=[{"name": "x", "shape": ["batch", 256]}],
        outputs=[],
        verification={"batches": 2},
    )
    return make_reference(asked, source, tmp_path / "reference.npz", outputs=("y",))


def verified(graph: Path, reference: Path, budget: Budget = DEFAULT) -> GraphVerification:
    return verify.verify_graph(graph, reference, budget, ComparisonRules())


def test_an_fp32_graph_that_adds_in_another_order_passes(tmp_path: Path, reference: Path) -> None:
    other = model(tmp_path / "other", order=np.random.default_rng(0).permutation(256))
    found = verified(other, reference)
    output = found.outputs[0]
    assert output.relative_l2 > DEFAULT.max_relative_l2, "the test's model is ill-conditioned"
    assert output.rounding > output.relative_l2 / DEFAULT.rounding
    assert found.passed, found.over_budget


def test_a_limit_that_the_recipe_writes_is_meant(tmp_path: Path, reference: Path) -> None:
    other = model(tmp_path / "other", order=np.random.default_rng(0).permutation(256))
    budget = Budget.model_validate(completed("fp32", {"max_relative_l2": 1e-4}))
    assert not verified(other, reference, budget).passed
    budget = Budget.model_validate(completed("fp32", {"max_relative_l2": 1e-4, "rounding": 4}))
    assert verified(other, reference, budget).passed
    assert completed("fp32", {"max_abs": 1.0})["rounding"] == DEFAULT.rounding


def test_what_is_more_than_rounding_is_refused(tmp_path: Path, reference: Path) -> None:
    """One per mille of a weight is wrong: above what rounding excuses, and below other limits."""
    found = verified(model(tmp_path / "wrong", scale=1.02), reference)
    assert any("relative L2" in line for line in found.over_budget)


def test_an_onnx_file_is_not_refused_for_what_onnx_runtime_fuses(
    tmp_path: Path, reference: Path
) -> None:
    """The reference is computed without optimizations, and so is the graph."""
    assert verified(tmp_path / "source/model.onnx", reference).outputs[0].relative_l2 == 0.0


def test_exact_numbers_are_not_moved() -> None:
    exact = np.float32([0, -0.0, 1, 255, -3, np.inf])
    assert rounding.neighbors(exact).tobytes() == exact.tobytes()
    assert rounding.neighbors(np.arange(3)).tolist() == [0, 1, 2]
    values = np.random.default_rng(1).normal(size=100).astype("f")
    moved = rounding.neighbors(values)
    assert (np.abs(moved - values) == np.abs(np.spacing(values))).mean() > 0.9
    assert (moved == rounding.neighbors(values)).all()


def test_a_channel_that_is_rounding_of_larger_ones_passes_and_only_so_far() -> None:
    """A channel of 1e-4 beside one of 100: FP32 keeps three digits of it."""

    def channel(relative: float) -> tuple[str, ...]:
        part = Part(
            kind="channel",
            where="axis 1, index 1",
            cosine=1 - relative**2 / 2,
            relative_l2=relative,
            max_abs=1e-7,
            rounding=1e-3,
        )
        whole = OutputComparison(
            output="y", cosine=1, max_abs=1e-7, relative_l2=1e-8, rounding=1e-8, parts=(part,)
        )
        return judge((whole,), DEFAULT)

    assert channel(3e-3) == ()
    assert channel(6e-3)
    assert judge((figures(0.05, rounding=1.0),), DEFAULT), "a chaotic model needs its own budget"


def figures(relative: float, rounding: float = 0.0) -> OutputComparison:
    cosine = 1 - relative**2 / 2
    return OutputComparison(
        output="y", cosine=cosine, max_abs=0, relative_l2=relative, rounding=rounding
    )


def test_an_engine_on_its_gpu_is_judged_with_the_rounding_of_its_graph() -> None:
    engine, graph = figures(3e-4), figures(0.0, rounding=1e-4)
    assert judge((engine,), DEFAULT)
    assert judge(with_rounding((engine,), (graph,)), DEFAULT) == ()
    assert judge(with_rounding((figures(5e-4),), (graph,)), DEFAULT)
    assert judge(with_rounding((engine,), (graph.model_copy(update={"output": "z"}),)), DEFAULT)
