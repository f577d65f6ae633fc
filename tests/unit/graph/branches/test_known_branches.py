"""Ifs that the recipe's sizes decide are gone; all others stay, and so do the numbers."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper
from tiny_models import recipe
from toy_graphs import result

from enginefarm.graph.branches import known_branches
from enginefarm.graph.exporting import export
from enginefarm.graph.model import bounds, walk

DATA = """
import numpy as np
def data(seed):
    r = np.random.default_rng(seed)
    while True: yield {"x": r.normal(size=(4, 6)).astype("f")}
"""
TWO = """
        <then_branch = twice () => (t) { two = Constant <value = float {2.0}> () t = Mul (x, two) },
         else_branch = same () => (t) { t = Identity (x) }>"""


def model(body: str, output: str = "float[n, 6] y", columns: str = "6") -> onnx.ModelProto:
    """x (n, 6) -> y; the same names in both branches, as PyTorch writes them."""
    signature = f"g (float[n, {columns}] x) => ({output})"
    head = '<ir_version: 8, opset_import: ["" : 16]>'
    return onnx.parser.parse_model(f"{head} {signature} {{{body}}}")


def asked(folder: Path, least: int = 2, most: int = 8, **more: Any):
    return recipe(
        folder,
        code=DATA,
        source={"kind": "onnx", "path": "model.onnx"},
        inputs=[{"name": "x", "shape": ["batch", 6]}],
        outputs=[],
        profiles=[{"dims": {"batch": [least, 4, most]}}],
        verification={"batches": 1},
        **more,
    )


def exported(folder: Path, made: onnx.ModelProto, **sizes: Any) -> export.Exported:
    onnx.save(made, folder / "model.onnx")
    return export.export_onnx(asked(folder, **sizes), folder / "out")


def ifs(path: Path) -> list[str]:
    graph = onnx.load(path).graph
    return [n.name for one in walk.graphs(graph) for n in one.node if n.op_type == "If"]


RANK = f"""s = Shape (x) r = Size (s) rank = Constant <value = int64 {{2}}> ()
    c = Equal (r, rank) y = If (c) {TWO}"""
DIM = f"""s = Shape (x) one = Constant <value = int64[1] {{%d}}> ()
    i = Constant <value = int64[1] {{%d}}> ()
    d = Gather (s, i) c = %s (d, one) y = If (c) {TWO}"""
NESTED = f"""s = Shape (x) r = Size (s) rank = Constant <value = int64 {{2}}> () c = Equal (r, rank)
    y = If (c) <then_branch = a () => (o) {{ n = Not (c) o = If (n) {TWO} }},
        else_branch = b () => (o) {{ o = Neg (x) }}>"""


@pytest.mark.parametrize(
    ("body", "factor"),
    [
        (RANK, 2),
        (DIM % (6, 1, "Equal"), 2),
        (DIM % (1, 1, "Equal"), 1),
        (DIM % (1, 0, "Greater"), 2),
        (DIM % (9, 0, "Equal"), 1),
        (DIM % (8, 0, "LessOrEqual"), 2),
        (NESTED, 1),
    ],
)
def test_an_if_that_the_sizes_decide_is_gone(tmp_path: Path, body: str, factor: int) -> None:
    report = exported(tmp_path, model(body))
    assert ifs(report.path) == []
    assert ifs(Path(str(report.model))) != [], "the reference is computed with the model's own Ifs"
    assert any("decided by the recipe's sizes" in note for note in report.notes)
    x = np.random.default_rng(0).normal(size=(3, 6)).astype("f")
    assert (result(report.path, x) == factor * x).all()


@pytest.mark.parametrize(
    "body",
    [
        DIM % (3, 0, "Equal"),  # false at min, opt and max, and true at 3
        DIM % (2, 0, "Greater"),
        f"""s = ReduceSum <keepdims = 0> (x) z = Constant <value = float {{0.0}}> ()
            c = Greater (s, z) y = If (c) {TWO}""",
    ],
)
def test_an_if_that_some_size_or_value_decides_stays(tmp_path: Path, body: str) -> None:
    report = exported(tmp_path, model(body))
    assert len(ifs(report.path)) == 1
    assert report.notes == ()


def test_one_inside_an_if_that_stays_and_one_after_a_pad_to_computed_sizes(tmp_path: Path) -> None:
    """onnx's inference does not compute the Pad's amounts; the sizes behind it hang on them."""
    body = f"""
        one = Constant <value = int64[4] {{0, 1, 0, 0}}> () amounts = Add (one, one)
        p = Pad (x, amounts) s = Shape (p) eight = Constant <value = int64[1] {{8}}> ()
        i = Constant <value = int64[1] {{1}}> () d = Gather (s, i) known = Equal (d, eight)
        sum = ReduceSum <keepdims = 0> (x) z = Constant <value = float {{0.0}}> ()
        c = Greater (sum, z)
        y = If (c) <then_branch = a () => (o) {{ o = If (known) {TWO} }},
            else_branch = b () => (o) {{ o = Neg (x) }}>"""
    report = exported(tmp_path, model(body))
    assert len(ifs(report.path)) == 1
    x = np.abs(np.random.default_rng(0).normal(size=(3, 6))).astype("f")
    assert (result(report.path, x) == 2 * x).all()
    assert (result(report.path, -x) == x).all()


def test_what_the_file_says_of_values_inside_is_not_believed(tmp_path: Path) -> None:
    """Its value_info says 6 where there are 3: the If would be decided the wrong way."""
    body = f"""a, b = Split <axis = 1> (x) s = Shape (a) i = Constant <value = int64[1] {{1}}> ()
        six = Constant <value = int64[1] {{6}}> () d = Gather (s, i) c = Equal (d, six)
        y = If (c) {TWO}"""
    made = model(body)
    made.graph.value_info.append(helper.make_tensor_value_info("a", 1, ["n", 6]))
    known_branches.fold(made, asked(tmp_path))
    onnx.save(made, tmp_path / "made.onnx")
    x = np.ones((2, 6), np.float32)
    del made.graph.value_info[:]
    assert (result(tmp_path / "made.onnx", x) == x).all()


def test_a_size_that_grows_in_a_loop_is_not_known(tmp_path: Path) -> None:
    """The If is false in the first step, with 6 columns, and true in the second, with 12."""
    body = """
        steps = Constant <value = int64 {2}> () on = Constant <value = bool {1}> ()
        y = Loop (steps, on, x) <body =
            step (int64 k, bool cc, float[n, 6] v) => (bool co, float[n, m] w) {
            co = Identity (cc) s = Shape (v) i = Constant <value = int64[1] {1}> ()
            six = Constant <value = int64[1] {6}> () d = Gather (s, i) c = Greater (d, six)
            u = If (c) <then_branch = t () => (t) { t = Neg (v) },
                else_branch = e () => (t) { t = Identity (v) }>
            w = Concat <axis = 1> (u, u) }>"""
    made = model(body, "float[n, m] y")
    assert known_branches.fold(made, asked(tmp_path)) == []


def test_a_branch_that_the_model_cannot_run_is_left_out_and_named(tmp_path: Path) -> None:
    """silero-full: the branch for 8 kHz takes other lengths than the recipe's."""
    body = """
        sum = ReduceSum <keepdims = 0> (x) z = Constant <value = float {-1e9}> ()
        c = Greater (sum, z)
        y = If (c) <then_branch = a () => (o) { o = Neg (x) },
            else_branch = b () => (o) {
                w = Constant <value = float[2, 1] {1.0, 1.0}> () o = MatMul (x, w) }>"""
    report = exported(tmp_path, model(body, "float[n, k] y", columns="m"))
    assert ifs(report.path) == []
    assert any("always takes its then branch" in note for note in report.notes), report.notes
    x = np.ones((3, 6), np.float32)
    assert (result(report.path, x) == -x).all()


def test_branches_of_a_large_model_are_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each try would hold its weights once more."""
    monkeypatch.setattr(walk, "LARGEST_BYTES", -1)
    monkeypatch.setattr(known_branches, "_impossible", None)
    body = f"""sum = ReduceSum <keepdims = 0> (x) z = Constant <value = float {{0.0}}> ()
        c = Greater (sum, z) y = If (c) {TWO}"""
    assert known_branches.leave_out(model(body), asked(tmp_path), {}) == []


OPERATORS = ("Add", "Sub", "Mul", "Div", "Min", "Max")
COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")


@pytest.mark.parametrize("operator", [*OPERATORS, *COMPARISONS])
def test_bounds_hold_every_value_that_is_possible(operator: str) -> None:
    random = np.random.default_rng(sum(operator.encode()))
    node = helper.make_node(operator, ["a", "b"], ["c"])

    def value(low: int, high: int) -> bounds.Bounds:
        return bounds.Bounds(np.array([low]), np.array([high]))

    decided = 0
    for _ in range(12):
        a, b = (sorted(random.integers(0, 6, 2).tolist()) for _ in range(2))
        found = bounds.of_node(node, [value(*a), value(*b)], 16)
        if found is None:
            assert operator == "Div"
            assert b[0] == 0
            continue
        decided += found.exact
        for one, other in product(range(a[0], a[1] + 1), range(b[0], b[1] + 1)):
            made = bounds.of_node(node, [value(one, one), value(other, other)], 16)
            if made is not None:  # a division by 0
                assert found.low[0] <= made.low[0] <= found.high[0], (operator, a, b, one, other)
    assert decided or operator in OPERATORS


def test_nothing_is_said_of_signs_that_are_not_known_of_random_numbers_and_of_large_values() -> (
    None
):
    below = bounds.Bounds(np.array([-2]), np.array([3]))
    for operator in ("Mul", "Div"):
        node = helper.make_node(operator, ["a", "a"], ["b"])
        assert bounds.of_node(node, [below, below], 16) is None
    assert bounds.of_array(np.zeros(5000)) is None
    made = model("y = RandomNormalLike (x)")
    assert known_branches.fold(made, None) == []  # type: ignore[arg-type]
