"""No If is left inside a branch of another If, and the numbers are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from tiny_models import recipe
from toy_graphs import result

from enginefarm.documents.spec import GpuTarget
from enginefarm.graph.exporting import export
from enginefarm.graph.model import onnx_files, operators, walk
from enginefarm.toolchains.missing_operators import lacking

DATA = """
import numpy as np
def data(seed):
    r = np.random.default_rng(seed)
    while True: yield {"x": r.normal(size=(4, 6)).astype("f")}
"""
HEAD = """s = ReduceSum <keepdims = 0> (x) low = Constant <value = float {0.0}> ()
    high = Constant <value = float {5.0}> () c = Greater (s, low) d = Greater (s, high)"""
L4 = GpuTarget(label="l4", compute_capability="8.9")


def inner(condition: str, read: str) -> str:
    """The same names in both branches, as PyTorch writes them."""
    return f"""If ({condition}) <
        then_branch = p () => (t) {{
            two = Constant <value = float {{2.0}}> () t = Mul ({read}, two) }},
        else_branch = q () => (t) {{
            two = Constant <value = float {{3.0}}> () t = Add ({read}, two) }}>"""


def outer(then: str, other: str = "o = Neg (x)") -> str:
    return f"""If (c) <then_branch = a () => (o) {{ {then} }},
        else_branch = b () => (o) {{ {other} }}>"""


def loop(body: str, count: str = "count", source: str = "x") -> str:
    return f"""Loop ({count}, go_on, {source}) <
        body = l (int64 i, bool g, float[n, 6] v) => (bool h, float[n, 6] w) {{
            h = Identity (g) {body} }}>"""


COUNTS = """count = Constant <value = int64 {3}> () go_on = Constant <value = bool {1}> ()
    many = Constant <value = int64 {9223372036854775807}> ()"""
BODIES = {
    "of the input": f"y = {outer('o = ' + inner('d', 'x'))}",
    "of a value outside": f"h = Abs (x) y = {outer('o = ' + inner('d', 'h'))}",
    "of values of the branch": f"""y = {
        outer(
            "k = Abs (x) m = ReduceMax <keepdims = 0> (k) e = Greater (m, low) o = "
            + inner("e", "k")
        )
    }""",
    "with weights of the branch": f"""y = {
        outer("one = Constant <value = float {1.0}> () k = Add (x, one) o = " + inner("d", "k"))
    }""",
    "that the branch goes on with": f"y = {outer('z = ' + inner('d', 'x') + ' o = Exp (z)')}",
    "in both branches": f"y = {outer('o = ' + inner('d', 'x'), 'o = ' + inner('d', 'x'))}",
    "three deep": f"""y = {
        outer(
            f"n = Not (d) o = If (n) <then_branch = u () => (r) {{ r = {inner('d', 'x')} }}, "
            "else_branch = v () => (r) { r = Abs (x) }>"
        )
    }""",
    "inside a Loop": f"{COUNTS} y = {outer('o = ' + loop('w = ' + inner('d', 'v')))}",
}


def model(body: str) -> onnx.ModelProto:
    head = '<ir_version: 8, opset_import: ["" : 16]> g (float[n, 6] x) => (float[n, 6] y)'
    return onnx.parser.parse_model(f"{head} {{ {HEAD} {body} }}")


def exported(folder: Path, made: onnx.ModelProto) -> export.Exported:
    onnx.save(made, folder / "model.onnx")
    asked = recipe(
        folder,
        code=DATA,
        source={"kind": "onnx", "path": "model.onnx"},
        inputs=[{"name": "x", "shape": ["batch", 6]}],
        outputs=[],
        profiles=[{"dims": {"batch": [2, 4, 8]}}],
        verification={"batches": 1},
    )
    return export.export_onnx(asked, folder / "out")


@pytest.mark.parametrize("where", BODIES)
def test_an_if_inside_an_if_is_taken_out(tmp_path: Path, where: str) -> None:
    report = exported(tmp_path, model(BODIES[where]))
    graph = onnx.load(report.path)
    assert walk.nested_ifs(graph.graph) == []
    assert any("computed before the outer If" in note for note in report.notes), report.notes
    assert lacking("tensorrt-rtx", L4, "fp16", operators.names(graph)) is None
    for level in (-1.0, 0.1, 1.0):  # neither condition, the first, both
        x = np.linspace(level - 0.5, level + 0.5, 18, dtype=np.float32).reshape(3, 6)
        np.testing.assert_array_equal(result(report.path, x), result(tmp_path / "model.onnx", x))


@pytest.mark.parametrize(
    "then",
    [
        pytest.param(
            f"o = {loop('w = ' + inner('d', 'v'), count='')}", id="a loop without a count"
        ),
        pytest.param(
            f"o = {loop('w = ' + inner('d', 'v'), count='many')}", id="a count that stands for none"
        ),
        pytest.param(
            f"k = {loop('w = Add (v, v)', count='many')} o = {inner('d', 'k')}", id="needs one"
        ),
        pytest.param(
            # Where the condition is false, it has other sizes: nothing to compute in vain.
            "m = ReduceMax <keepdims = 0> (x) v = Cast <to = 7> (m) "
            "six = Constant <value = int64[2] {-1, 7}> () k = Reshape (x, six) "
            f"l = {inner('d', 'k')} n = ReduceSum (l) o = Add (n, x)",
            id="cannot be computed in vain",
        ),
    ],
)
def test_one_that_cannot_be_taken_out_is_refused_by_name_before_the_build(
    tmp_path: Path, then: str
) -> None:
    made = model(f"{COUNTS} y = {outer(then).replace('If (c)', 'If (never)')}")
    made.graph.node.insert(2, onnx.helper.make_node("Constant", [], ["billion"], value_float=1e9))
    made.graph.node.insert(3, onnx.helper.make_node("Greater", ["s", "billion"], ["never"]))
    report = exported(tmp_path, made)
    error = lacking("tensorrt-rtx", L4, "fp16", operators.names(onnx_files.graph_only(report.path)))
    assert error is not None
    assert "(If inside an If) cannot be built for l4" in error.what
    assert error.fix
    x = np.ones((3, 6), np.float32)
    np.testing.assert_array_equal(result(report.path, x), -x)


def test_ifs_of_loops_and_beside_each_other_stay_as_they_are(tmp_path: Path) -> None:
    """TensorRT builds these."""
    inside = loop("w = " + outer("o = " + inner("d", "v")), source="k")
    report = exported(tmp_path, model(f"{COUNTS} k = {inner('c', 'x')} y = {inside}"))
    assert report.notes == ()
    named = operators.names(onnx_files.graph_only(report.path))
    assert lacking("tensorrt-rtx", L4, "fp16", named) is None
