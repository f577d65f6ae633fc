"""ONNX files as they are read: raised, fitted to the recipe, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import toy_graphs
from onnx import TensorProto, helper, numpy_helper
from toy_graphs import run

from enginefarm.documents.comparing import ComparisonRules
from enginefarm.documents.recipe import Recipe
from enginefarm.documents.thresholds import DEFAULT_BUDGETS
from enginefarm.errors import EnginefarmError, ModelError, SourceError
from enginefarm.graph.exporting import export, slim, use
from enginefarm.graph.model import onnx_files, walk
from enginefarm.graph.precisions import precision
from enginefarm.graph.reading import raising, readable, refused
from enginefarm.graph.verification import steady, verify
from enginefarm.graph.verification.reference import ReferenceBatch, make_reference

FLOAT = TensorProto.FLOAT
DATA = (
    "import numpy as np\n"
    "def data(seed=0, batch_size=4):\n"
    "    random = np.random.default_rng(seed)\n"
    "    while True:\n"
    "        yield {'x': random.normal(size=(batch_size, 4)).astype(np.float32)}\n"
)


def value(name: str, shape: list[Any] | None, dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    nodes: list[onnx.NodeProto],
    *,
    inputs: list[onnx.ValueInfoProto] | None = None,
    outputs: list[onnx.ValueInfoProto] | None = None,
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 20,
    ir: int = 8,
    domain: str = "",
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        inputs or [value("x", ["n", 4])],
        outputs or [value("y", ["n", 4])],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    opsets += [helper.make_opsetid(domain, 1)] if domain else []
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir)


def relu(**options: Any) -> onnx.ModelProto:
    return model([helper.make_node("Relu", ["x"], ["y"], "relu")], **options)


def recipe(folder: Path, made: onnx.ModelProto, **changes: Any) -> Recipe:
    (folder / "data.py").write_text(DATA)
    verification = {"data": {"callable": "data.py:data"}, "batches": 1}
    return toy_graphs.recipe(folder, made, **{"verification": verification, **changes})


def exported(folder: Path, made: onnx.ModelProto, **changes: Any) -> export.Exported:
    return export.export_onnx(recipe(folder, made, **changes), folder / "out")


def old_batch_norm() -> onnx.ModelProto:
    """Opset 6 and IR 3, weights among the inputs, as PyTorch 0.3 wrote it."""
    weights = {name: np.full(4, n + 1, np.float32) for n, name in enumerate("sbmv")}
    nodes = [
        helper.make_node("BatchNormalization", ["x", *"sbmv"], ["a"], "bn", is_test=1),
        helper.make_node("Add", ["a", "b"], ["y"], "add", axis=1, broadcast=1),
    ]
    inputs = [value("x", ["n", 4]), *(value(name, [4]) for name in "sbmv")]
    return model(nodes, inputs=inputs, weights=weights, opset=6, ir=3)


def test_a_model_of_opset_6_is_raised_and_says_so(tmp_path: Path) -> None:
    report = exported(tmp_path, old_batch_norm())
    assert report.opset >= raising.OPSET
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    want = (x - 3) / np.sqrt(4 + 1e-5) + 2 + 2
    np.testing.assert_allclose(run(report.path, {"x": x})["y"], want, rtol=1e-5)
    assert "opset 6, which was raised to 13" in report.notes[0]
    assert "not compared with the file" in report.notes[0], "ONNX Runtime has no opset 6"
    made = onnx.load(report.path)
    assert made.ir_version >= raising.IR
    assert [item.name for item in made.graph.input] == ["x"]


def test_a_raised_model_is_compared_with_the_file(tmp_path: Path) -> None:
    notes = exported(tmp_path, relu(opset=9, ir=3)).notes
    assert notes == ("the file has opset 9, which was raised to 13 (the numbers equal the file's)",)
    assert exported(tmp_path, relu(opset=17)).notes == ()


def test_an_output_of_another_rank_than_the_file_says_is_corrected(tmp_path: Path) -> None:
    """The Reshape's sizes are known at run time only; exporters have written what they guessed."""
    nodes = [
        helper.make_node("Shape", ["x"], ["size"]),
        helper.make_node("Concat", ["one", "size"], ["sizes"], axis=0),
        helper.make_node("Reshape", ["x", "sizes"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"]),
    ]
    weights = {"one": np.array([1], np.int64), "w": np.eye(4, dtype=np.float32)}
    made = model(nodes, outputs=[value("y", [1, "steps"])], weights=weights, opset=13)
    report = exported(tmp_path, made)
    wanted = recipe(tmp_path, made)
    shape = onnx.load(report.path).graph.output[0].type.tensor_type.shape
    assert len(shape.dim) == 3
    for name in ("fp16", "bf16"):
        precision(name).convert(report.path, tmp_path / name, wanted, ())


@pytest.mark.parametrize(
    ("reader", "first"), [("Cast", "Cast"), ("Transpose", "Cast"), ("ArgMax", "ArgMax")]
)
def test_a_uint8_input_is_made_floats_before_it_is_moved(
    tmp_path: Path, reader: str, first: str
) -> None:
    """TensorRT has no Transpose of uint8; what else reads such an input is left alone."""
    nodes = [
        helper.make_node(reader, ["x"], ["t"], **({"to": FLOAT} if reader == "Cast" else {})),
        helper.make_node("Cast", ["t"], ["y"], to=FLOAT),
    ]
    made = model(
        nodes, inputs=[value("x", ["n", 4], TensorProto.UINT8)], outputs=[value("y", ["a", "b"])]
    )
    inputs = [{"name": "x", "dtype": "uint8", "shape": ["batch", 4]}]
    data = {"random": True, "arguments": {"batch": 2}}
    report = exported(tmp_path, made, inputs=inputs, verification={"data": data, "batches": 1})
    found = onnx.load(report.path)
    assert found.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    readers = [node.op_type for node in found.graph.node if "x" in node.input]
    assert readers == [first]
    x = np.array([[0, 1, 128, 255], [7, 8, 9, 254]], np.uint8)
    wanted = {"Cast": x, "Transpose": x.T, "ArgMax": x.argmax(0)[None]}[reader]
    np.testing.assert_array_equal(run(report.path, {"x": x})["y"], wanted.astype("f"))


def test_a_loop_without_a_condition_gets_one(tmp_path: Path) -> None:
    body = helper.make_graph(
        [
            helper.make_node("Add", ["v", "v"], ["grown"]),
            helper.make_node("Identity", ["going"], ["still"]),
        ],
        "body",
        [value("i", [], TensorProto.INT64), value("going", [], TensorProto.BOOL), value("v", None)],
        [value("still", [], TensorProto.BOOL), value("grown", None)],
    )
    loop = helper.make_node("Loop", ["steps", "", "x"], ["y"], "loop", body=body)
    made = model([loop], weights={"steps": np.array(3, np.int64)})
    report = exported(tmp_path, made)
    (node,) = onnx.load(report.path).graph.node
    assert all(node.input), "TensorRT's parser refuses a Loop without one"
    x = np.ones((1, 4), np.float32)
    assert run(report.path, {"x": x})["y"].tolist() == [[8.0] * 4]


@pytest.mark.parametrize("count", [None, 2**63 - 1, 5])
@pytest.mark.parametrize("reads", [True, False])
def test_a_while_that_reads_its_step_has_a_count(
    tmp_path: Path, count: int | None, reads: bool
) -> None:
    """TensorRT's parser has no number of the step without one, and takes larger ones for none."""
    made = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 18]>
        agraph (float[n, 4] x) => (float[n, 4] y) {{
            y = Loop ({"" if count is None else "steps"}, yes, x) <body = one
                (int64 i, bool go, float[p, 4] h) => (bool still, float[p, 4] next) {{
                    still = {"Less (i, four)" if reads else "Identity (go)"}
                    next = Add (h, h)
                }}>
        }}"""
    )
    values = {"steps": np.int64(count or 0), "yes": np.array(True), "four": np.int64(4)}
    named = ((np.asarray(one), name) for name, one in values.items())
    made.graph.initializer.extend(numpy_helper.from_array(*one) for one in named)
    made = raising.raised(made, error=SourceError, what="test")
    (loop,) = made.graph.node
    weights = {one.name: numpy_helper.to_array(one) for one in made.graph.initializer}
    kept = count if count == 5 or not reads else raising.MOST_STEPS
    assert (weights[loop.input[0]] == kept) if loop.input[0] else kept is None
    if reads:
        path = onnx_files.write(made, tmp_path)
        found = run(path, {"x": np.ones((1, 4), np.float32)})
        assert found["y"].tolist() == [[32.0] * 4]


@pytest.mark.parametrize(
    ("node", "kept"),
    [
        (helper.make_node("Dropout", ["x"], ["y", ""]), ["y"]),
        (helper.make_node("MaxPool", ["x"], ["y", ""], kernel_shape=[1]), ["y"]),
        (helper.make_node("LayerNormalization", ["x", "s"], ["y", "", ""]), ["y"]),
        (helper.make_node("LayerNormalization", ["x", "s"], ["y", "mean", "more"]), ["y"]),
        (
            helper.make_node("LayerNormalization", ["x", "s"], ["y", "mean", "read"]),
            ["y", "", "read"],
        ),
    ],
)
def test_optional_results_that_nobody_reads_are_left_out(
    node: onnx.NodeProto, kept: list[str]
) -> None:
    """TensorRT's parser counts them, and refuses a Dropout with one."""
    reader = helper.make_node("Identity", ["read"], ["z"])
    made = model([node, reader] if "read" in kept else [node], opset=17)
    readable.make_readable(made, "test")
    assert list(made.graph.node[0].output) == kept


def test_the_results_of_an_old_batch_normalization_say_that_it_trains() -> None:
    outputs = ["y", "m", "v", "saved_m", "saved_v"]
    made = model([helper.make_node("BatchNormalization", [*"xsbmv"], outputs)], opset=9)
    readable.make_readable(made, "test")
    assert list(made.graph.node[0].output) == outputs


@pytest.mark.parametrize(("operator", "opset"), [("Upsample", 9), ("Resize", 10)])
def test_an_old_resize_keeps_its_pixels_where_they_were(
    tmp_path: Path, operator: str, opset: int
) -> None:
    node = helper.make_node(operator, ["x", "scales"], ["y"], "up", mode="linear")
    scales = {"scales": np.array([1, 1, 2, 2], np.float32)}
    shape = [1, 2, 4, 4]
    ends = {"inputs": [value("x", shape)], "outputs": [value("y", [1, 2, 8, 8])]}
    made = model([node], **ends, weights=scales, opset=opset, ir=4)
    report = exported(
        tmp_path,
        made,
        inputs=[{"name": "x", "shape": shape}],
        profiles=[{"dims": {}}],
        verification={"data": {"random": True}, "batches": 1, "batch_size": 1},
    )
    assert "the numbers equal the file's" in report.notes[0]


@pytest.mark.parametrize("attributes", [{}, {"axis": 1}, {"axis": 2}])
def test_an_old_hardmax_is_over_all_axes_behind_its_own(
    tmp_path: Path, attributes: dict[str, int]
) -> None:
    shape = [2, 3, 4]
    node = helper.make_node("Hardmax", ["x"], ["y"], **attributes)
    made = model([node], inputs=[value("x", shape)], outputs=[value("y", shape)], opset=11)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    wanted = run(onnx_files.write(made, tmp_path / "old"), {"x": x})["y"]
    made = raising.raised(made, error=SourceError, what="test")
    assert walk.opset(made) == raising.OPSET
    found = run(onnx_files.write(made, tmp_path / "new"), {"x": x})["y"]
    np.testing.assert_array_equal(found, wanted)


def test_raising_that_changes_numbers_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnx import version_converter

    real = version_converter.convert_version

    def wrong(made: onnx.ModelProto, opset: int) -> onnx.ModelProto:
        found = real(made, opset)
        found.graph.node[0].op_type = "Abs"
        return found

    monkeypatch.setattr(version_converter, "convert_version", wrong)
    with pytest.raises(SourceError, match=r"raising m\.onnx changed output 'y'"):
        exported(tmp_path, relu(opset=9))


def test_what_cannot_be_raised_stays_where_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnx import version_converter

    def lacks(made: onnx.ModelProto, opset: int) -> onnx.ModelProto:
        raise RuntimeError("no adapter for Upsample")

    monkeypatch.setattr(version_converter, "convert_version", lacks)
    assert exported(tmp_path, relu(opset=9)).opset == 9
    with pytest.raises(SourceError, match="opset 6 cannot be raised to 13") as caught:
        exported(tmp_path, relu(opset=6))
    assert "no adapter for Upsample" in caught.value.why


@pytest.mark.parametrize("dims", [[-1, 4], [0, 4], [None, 4], ["?", "?"], [None, None], ["n", "m"]])
def test_unknown_dims_become_the_recipes(tmp_path: Path, dims: list[Any]) -> None:
    made = relu(inputs=[value("x", dims)], outputs=[value("y", dims)])
    report = exported(tmp_path, made)
    graph = onnx.load(report.path).graph
    for item in (graph.input[0], graph.output[0]):
        dim = item.type.tensor_type.shape.dim
        assert (dim[0].dim_param, dim[1].dim_value) == ("batch", 4)


@pytest.mark.parametrize("dims", [([-1, 4], [0, 4]), ([0, 4], [-1, 4]), (["n", 4], [-1, 0])])
def test_an_unknown_dim_may_be_written_otherwise_at_an_output(
    tmp_path: Path, dims: tuple[list[Any], list[Any]]
) -> None:
    """onnx's checker takes -1 and 0 for sizes, which contradict each other."""
    made = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        inputs=[value("x", dims[0])],
        outputs=[value("y", dims[1])],
        weights={"w": np.eye(4, dtype=np.float32)},
    )
    (output,) = onnx.load(exported(tmp_path, made).path).graph.output
    dim = output.type.tensor_type.shape.dim
    assert (dim[0].dim_param, dim[1].dim_value) == ("batch", 4)


def test_an_output_without_a_shape_gets_the_one_that_follows(tmp_path: Path) -> None:
    report = exported(tmp_path, relu(outputs=[value("y", None)]))
    dim = onnx.load(report.path).graph.output[0].type.tensor_type.shape.dim
    assert (dim[0].dim_param, dim[1].dim_value) == ("batch", 4)


def test_an_output_whose_rank_follows_from_nothing_gets_the_one_that_it_has(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["size"]),
        helper.make_node("Gather", ["size", "where"], ["sizes"], "gather"),
        helper.make_node("Reshape", ["x", "sizes"], ["y"], "reshape"),
    ]
    where = helper.make_node("Compress", ["places", "which"], ["where"], "compress", axis=0)
    made = model(
        [where, *nodes],
        outputs=[value("y", None)],
        weights={"places": np.array([0, 1, 1]), "which": np.array([True, True, False])},
    )
    (output,) = onnx.load(exported(tmp_path, made).path).graph.output
    assert len(output.type.tensor_type.shape.dim) == 2


def test_dims_that_the_recipe_fixes_reach_the_operators_behind(tmp_path: Path) -> None:
    """aecmos: a Squeeze over a dim that only the recipe knows to be 1."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Squeeze", ["a"], ["y"], "squeeze"),
    ]
    made = model(nodes, inputs=[value("x", ["n", 4])], outputs=[value("y", ["n"])])
    report = exported(
        tmp_path,
        made,
        inputs=[{"name": "x", "shape": [1, 4]}],
        profiles=[{"dims": {}}],
        verification={"data": {"callable": "data.py:data"}, "batch_size": 1},
    )
    graph = onnx.load(report.path).graph
    assert [dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim] == [1, 4]
    assert [dim.dim_value for dim in graph.output[0].type.tensor_type.shape.dim] == [4]


def test_a_weight_that_the_file_lists_with_its_shape_keeps_it(tmp_path: Path) -> None:
    """PyTorch's exporter lists them. Without the shape of its axes, onnx takes a Slice for one of
    the first axis, and the sum below for one of 4 and 2 columns."""
    limits = {"from": 0, "to": 2, "axis": 1}
    nodes = [
        helper.make_node("Slice", ["x", *limits], ["part"]),
        helper.make_node("Add", ["part", "bias"], ["y"]),
    ]
    weights = {name: np.array([limit]) for name, limit in limits.items()}
    weights |= {"bias": np.ones(2, np.float32)}
    made = model(nodes, outputs=[value("y", ["n", 2])], weights=weights)
    made.graph.value_info.extend(value(name, [1], TensorProto.INT64) for name in limits)
    onnx.checker.check_model(made, full_check=True)
    output = onnx.load(exported(tmp_path, made).path).graph.output[0]
    dims = output.type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 2]


@pytest.mark.parametrize("opset", [11, 20])
@pytest.mark.parametrize("stale", [value("h", [7, 7]), value("h", ["n", 4], TensorProto.FLOAT16)])
def test_stale_shapes_of_inner_values_are_forgotten(
    tmp_path: Path, stale: onnx.ValueInfoProto, opset: int
) -> None:
    """Tools that cut or edit a graph leave them; ONNX Runtime and TensorRT infer their own."""
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Neg", ["h"], ["y"])]
    made = model(nodes, opset=opset)
    made.graph.value_info.append(stale)
    report = exported(tmp_path, made)
    assert "shapes of inner values contradict" in " ".join(report.notes)
    x = np.arange(-4, 4, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(run(report.path, {"x": x})["y"], -np.maximum(x, 0))


def test_a_dim_that_the_graph_fixes_to_another_size_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"dim 1 of 'x' is fixed to 5 in the graph"):
        exported(tmp_path, relu(inputs=[value("x", ["n", 5])], outputs=[value("y", ["n", 5])]))


@pytest.mark.parametrize("opset", [11, 20])
def test_parts_of_a_split_that_nobody_reads_get_names(tmp_path: Path, opset: int) -> None:
    """TensorRT-RTX refuses a Split with fewer named parts than it has; ONNX Runtime crashes."""
    sizes = {"split": [1, 1, 2]} if opset < 13 else {"num_outputs": 3}
    split = helper.make_node("Split", ["x"], ["", "y", ""], "cut", axis=1, **sizes)
    taken = helper.make_node("Relu", ["x"], ["cut_part_0"])
    outputs = [value("y", ["n", "m"]), value("cut_part_0", ["n", 4])]
    path = exported(tmp_path, model([split, taken], outputs=outputs, opset=opset)).path
    found = [node for node in onnx_files.graph_only(path).graph.node if node.op_type == "Split"]
    assert len({*found[0].output, "cut_part_0", ""}) == 5
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    wanted = x[:, 1:2] if opset < 13 else x[:, 2:4]
    np.testing.assert_array_equal(run(path, {"x": x})["y"], wanted)


def typeless(name: str) -> onnx.ValueInfoProto:
    return onnx.ValueInfoProto(name=name)


def without_dims(name: str) -> onnx.ValueInfoProto:
    return value(name, None)


@pytest.mark.parametrize("opset", [8, 12, 20])
@pytest.mark.parametrize("given", [without_dims, typeless])
@pytest.mark.parametrize("left", ["input", "input output", "input output inside"])
def test_what_the_file_does_not_say_of_an_input_is_the_recipes(
    tmp_path: Path, opset: int, given: Any, left: str
) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], "product"),
        helper.make_node("Add", ["p", "b"], ["y"], "add"),
    ]
    made = model(
        nodes,
        inputs=[given("x")],
        outputs=[given("y") if "output" in left else value("y", ["n", 4])],
        weights={"w": np.eye(4, dtype=np.float32), "b": np.ones(4, np.float32)},
        opset=opset,
    )
    if "inside" in left:
        made.graph.value_info.append(given("p"))
    report = exported(tmp_path, made)
    graph = onnx.load(report.path).graph
    for item in (graph.input[0], graph.output[0]):
        assert item.type.tensor_type.elem_type == FLOAT
        dim = item.type.tensor_type.shape.dim
        assert (dim[0].dim_param, dim[1].dim_value) == ("batch", 4)
    for size in (1, 3):
        x = np.arange(size * 4, dtype=np.float32).reshape(size, 4)
        np.testing.assert_array_equal(run(report.path, {"x": x})["y"], x + 1)


def test_a_shape_of_the_recipe_that_the_operators_do_not_take_is_blamed(tmp_path: Path) -> None:
    made = model(
        [helper.make_node("Conv", ["x", "w"], ["y"], "conv")],
        inputs=[value("x", None)],
        outputs=[value("y", None)],
        weights={"w": np.ones((1, 4, 1, 1), np.float32)},
    )
    with pytest.raises(SourceError, match="with the recipe's shape of x") as caught:
        exported(tmp_path, made)
    assert "conv" in caught.value.why


def test_an_input_of_unknown_rank_that_the_recipe_does_not_have_is_named(tmp_path: Path) -> None:
    made = model(
        [helper.make_node("Add", ["x", "z"], ["y"])],
        inputs=[value("x", ["n", 4]), value("z", None)],
    )
    with pytest.raises(SourceError, match="input 'z' has no shape") as caught:
        exported(tmp_path, made)
    assert "inputs" in str(caught.value.fix)


def test_nodes_without_a_name_are_named_by_what_they_make(tmp_path: Path) -> None:
    made = model([helper.make_node("RandomNormalLike", ["x"], ["y"])])
    onnx.save(made, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"random numbers: node 'y' \(RandomNormalLike\)"):
        steady.refuse_random(onnx.load(tmp_path / "m.onnx"))
    sized = model(
        [helper.make_node("Expand", ["x", "sizes"], ["y"])],
        inputs=[value("x", ["n", 4]), value("sizes", [2], TensorProto.INT64)],
    )
    use = refused.read_as_sizes(sized.graph, {"sizes": "sizes"})
    assert use is not None
    assert (use[0], use[1].op_type) == ("sizes", "Expand")


@pytest.mark.parametrize(
    "text",
    [
        "squared = Pow (s, s) both = Concat <axis = 0> (squared, s) y = Expand (x, both)",
        "y = If (c) <then_branch = one () => (float[a, b] t) { t = Reshape (x, s) },"
        " else_branch = other () => (float[a, b] e) { e = Neg (x) }>",
        "smaller = Less (s, s) sizes = Where (smaller, k, k) y = Reshape (x, sizes)",
    ],
)
def test_an_input_whose_values_become_sizes_is_found_in_bodies_too(text: str) -> None:
    made = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>'
        f"agraph (bool c, float[2, 6] x, int64[2] s, int64[2] k) => (float[a, b] y) {{ {text} }}"
    )
    use = refused.read_as_sizes(made.graph, {"s": "s"})
    assert use is not None
    assert use[0] == "s"
    assert refused.read_as_sizes(made.graph, {"c": "c"}) is None


def test_random_inputs_that_the_model_does_not_take_are_said_to_be_random(tmp_path: Path) -> None:
    made = model(
        [helper.make_node("Gather", ["x", "index"], ["y"], "gather", axis=1)],
        inputs=[value("x", ["n", 4]), value("index", [9], TensorProto.INT64)],
        outputs=[value("y", ["n", 9])],
    )
    inputs = [{"name": "x", "shape": ["batch", 4]}, {"name": "index", "dtype": "int64"}]
    inputs[1]["shape"] = [9]
    with pytest.raises(EnginefarmError, match="does not accept random numbers"):
        exported(tmp_path, made, inputs=inputs, verification={})


def test_outputs_get_the_recipes_names_and_class_scores_must_be_there(tmp_path: Path) -> None:
    report = exported(tmp_path, relu(), outputs=["scores"])
    assert report.outputs == ("scores",)
    x = -np.ones((2, 4), np.float32)
    assert list(run(report.path, {"x": x})) == ["scores"]
    loaded = export.load(recipe(tmp_path, relu(), outputs=["scores"]), tmp_path / "reference")
    assert list(run(loaded.model, {"x": x})) == ["scores"], "the reference has the same names"
    with pytest.raises(SourceError, match="the graph has 1 outputs, the recipe names 2"):
        exported(tmp_path, relu(), outputs=["scores", "boxes"])
    verification = {"data": {"callable": "data.py:data"}, "class_scores": ["scores"]}
    with pytest.raises(SourceError, match="the model has no output scores"):
        exported(tmp_path, relu(), verification=verification)


@pytest.mark.parametrize(
    ("domain", "operator"), [("com.microsoft", "FusedGelu"), ("ai.onnx.ml", "Scaler")]
)
def test_operators_of_other_domains_are_named(tmp_path: Path, domain: str, operator: str) -> None:
    made = model([helper.make_node(operator, ["x"], ["y"], "odd", domain=domain)], domain=domain)
    with pytest.raises(SourceError, match=f"node 'odd' is operator {operator} of domain {domain}"):
        exported(tmp_path, made)


@pytest.mark.parametrize("dtype", ["UINT16", "UINT32", "UINT64", "STRING", "INT16", "DOUBLE"])
def test_types_that_engines_do_not_have_are_named(tmp_path: Path, dtype: str) -> None:
    number = TensorProto.DataType.Value(dtype)
    word = {"DOUBLE": "float64"}.get(dtype, dtype.lower())
    cast = helper.make_node("Cast", ["x"], ["y"], to=FLOAT)
    integer = [{"name": "x", "shape": ["batch", 4], "dtype": "int64"}]
    with pytest.raises(SourceError, match=f"'x' is {word} in the graph"):
        exported(tmp_path, model([cast], inputs=[value("x", ["n", 4], number)]), inputs=integer)
    cast = helper.make_node("Cast", ["x"], ["y"], to=number)
    with pytest.raises(SourceError, match=f"outputs: 'y' is {word} in the graph"):
        exported(tmp_path, model([cast], outputs=[value("y", ["n", 4], number)]))


def test_float64_is_computed_in_fp32_where_the_recipe_asks(tmp_path: Path) -> None:
    double = TensorProto.DOUBLE
    nodes = [
        helper.make_node("Cast", ["x"], ["c"], to=double),
        helper.make_node("Mul", ["c", "w"], ["y"]),
    ]
    made = model(
        nodes,
        inputs=[value("x", ["n", 4], double)],
        outputs=[value("y", ["n", 4], double)],
        weights={"w": np.full(4, 1 / 3)},
    )
    report = exported(tmp_path, made)
    graph = onnx.load(report.path).graph
    assert {item.type.tensor_type.elem_type for item in (*graph.input, *graph.output)} == {FLOAT}
    x = np.ones((2, 4), np.float32)
    np.testing.assert_allclose(run(report.path, {"x": x})["y"], 1 / 3, rtol=1e-6)
    assert (
        "float64 in the file is computed in float32 (the numbers equal the file's)" in report.notes
    )


@pytest.mark.parametrize("opset", [11, 20])
def test_float64_inside_is_computed_in_fp32_and_compared_with_float64(
    tmp_path: Path, opset: int
) -> None:
    """TensorRT computes it in FP32: what that loses has to be seen."""
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("Add", ["wide", "much"], ["sum"]),
        helper.make_node("Sub", ["sum", "much"], ["rest"]),
        helper.make_node("Cast", ["rest"], ["y"], to=FLOAT),
    ]
    made = model(
        nodes,
        weights={"much": np.array(3e7), "unused": np.array(-1e300)},
        opset=opset,
    )
    report = exported(tmp_path, made)
    graph = onnx.load(report.path)
    assert TensorProto.DOUBLE not in {tensor.data_type for tensor in walk.tensors(graph)}
    assert graph.graph.output[0].name == "y"
    assert any("float64 inside the graph" in note for note in report.notes)
    x = np.array([[0.25, 0.5, 3, 4]], np.float32)
    np.testing.assert_array_equal(run(report.path, {"x": x})["y"], [[0, 0, 4, 4]])
    wanted = recipe(tmp_path, made, profiles=[{"dims": {"batch": [1, 4, 8]}}])
    reference = make_reference(wanted, report.model, tmp_path / "r.npz", outputs=report.outputs)
    verdict = verify.verify_graph(
        report.path, reference, wanted.budget("fp32"), wanted.verification.comparing
    )
    assert not verdict.passed


@pytest.mark.parametrize("names", [["copy", "y"], ["same", "other"]])
def test_an_output_that_is_an_input_is_a_copy_under_the_recipes_name(
    tmp_path: Path, names: list[str]
) -> None:
    made = relu(outputs=[value("x", ["n", 4]), value("y", ["n", 4])])
    report = exported(tmp_path, made, outputs=names)
    graph = onnx.load(report.path).graph
    assert [item.name for item in graph.input] == ["x"]
    assert list(report.outputs) == names
    x = np.array([[-1, 0, 1, 2]], np.float32)
    found = run(report.path, {"x": x})
    np.testing.assert_array_equal(found[names[0]], x)
    np.testing.assert_array_equal(found[names[1]], np.maximum(x, 0))


def test_an_output_that_is_an_input_and_has_no_other_name_is_refused(tmp_path: Path) -> None:
    made = relu(outputs=[value("x", ["n", 4]), value("y", ["n", 4])])
    with pytest.raises(SourceError, match="outputs: 'x' is an input of the graph itself") as caught:
        exported(tmp_path, made)
    assert "`outputs`" in str(caught.value.fix)


@pytest.mark.parametrize("operator", ["GRU", "LSTM", "RNN"])
def test_recurrent_layers_with_the_batch_first_run(tmp_path: Path, operator: str) -> None:
    """Judged by ONNX's own evaluator, which has layout 1."""
    from onnx.reference import ReferenceEvaluator

    random = np.random.default_rng(0)
    gates = {"GRU": 3, "LSTM": 4, "RNN": 1}[operator]
    weights = {
        "w": random.normal(size=(1, gates * 3, 4)).astype(np.float32),
        "r": random.normal(size=(1, gates * 3, 3)).astype(np.float32),
    }
    node = helper.make_node(
        operator, ["x", "w", "r", "", "", "h"], ["y", "yh"], "rnn", hidden_size=3, layout=1
    )
    inputs = [value("x", [2, 5, 4]), value("h", [2, 1, 3])]
    outputs = [value("y", [2, 5, 1, 3]), value("yh", [2, 1, 3])]
    made = model([node], inputs=inputs, outputs=outputs, weights=weights)
    feeds = {
        "x": random.normal(size=(2, 5, 4)).astype(np.float32),
        "h": np.zeros((2, 1, 3), np.float32),
    }
    want = ReferenceEvaluator(made).run(None, feeds)
    raised = raising.raised(made, error=SourceError, what="test")
    path = onnx_files.write(raised, tmp_path)
    onnx_files.check(path, error=SourceError, what="test")
    for found, wanted in zip(run(path, feeds).values(), want, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_every_refusal_is_one_of_ours_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(EnginefarmError) as caught:
        exported(tmp_path, relu(inputs=[value("x", ["n", 5])]))
    assert caught.value.fix
    assert use.slim_tool().arguments["fallback"] == 1


def test_a_size_that_contradicts_a_dead_branch_is_written_without_it(tmp_path: Path) -> None:
    """silero-full: `if dim == 1: squeeze` with a dim that the recipe knows to be 2."""
    out = [value("o", None)]
    squeeze = helper.make_node("Squeeze", ["x", "axis"], ["o"], "squeeze")
    keep = helper.make_node("Identity", ["x"], ["o"], "keep")
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["d"]),
        helper.make_node("Equal", ["d", "one"], ["c"]),
        helper.make_node(
            "If",
            ["c"],
            ["i"],
            "if",
            then_branch=helper.make_graph([squeeze], "then", [], out),
            else_branch=helper.make_graph([keep], "else", [], out),
        ),
        helper.make_node("Reshape", ["i", "flat"], ["y"]),
    ]
    weights = {
        "axis": np.array([0]),
        "zero": np.array(0),
        "one": np.array(1),
        "flat": np.array([-1, 4]),
    }
    made = model(nodes, weights=weights)
    report = exported(
        tmp_path,
        made,
        inputs=[{"name": "x", "shape": [2, 4]}],
        profiles=[{"dims": {}}],
        verification={"data": {"callable": "data.py:data"}, "batch_size": 2},
    )
    assert report.notes == ("one If node is decided by the recipe's sizes: 'if'",)
    graph = onnx.load(report.path).graph
    assert [dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim] == [2, 4]
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(run(report.path, {"x": x})["y"], x)


def test_a_large_model_goes_through_hard_links_and_beside_its_namesake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model above 1.5 GB, at a small size: its weights are in a file of their own, stages get
    it by hard link, and the current folder has a file of that name too."""
    monkeypatch.setattr(onnx_files, "EXTERNAL_ABOVE_BYTES", 500)
    weight = np.random.default_rng(0).normal(size=(4, 512)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "mm")]
    made = model(nodes, outputs=[value("y", ["n", 512])], weights={"w": weight})
    (tmp_path / "model.onnx.data").write_bytes(b"somebody else's")
    monkeypatch.chdir(tmp_path)
    data = {"callable": "data.py:data"}
    wanted = recipe(tmp_path, made, verification={"data": data, "batches": 1, "batch_size": 2})
    report = export.export_onnx(wanted, tmp_path / "out")
    assert len(onnx_files.files(report.path)) == 2
    reference = make_reference(wanted, report.model, tmp_path / "r.npz", outputs=report.outputs)
    slimmed = slim.slim_onnx(
        linked(report.path, tmp_path / "1"), tmp_path / "slim", [{"x": np.ones((2, 4), np.float32)}]
    )
    assert slimmed.refused == ""
    low = precision("fp16").convert(
        linked(slimmed.path, tmp_path / "2"), tmp_path / "fp16", wanted, ()
    )
    sizes = [onnx_files.files(one.path)[1].stat().st_size for one in (low, slimmed)]
    assert sizes[0] < sizes[1]
    verdict = verify.verify_graph(
        linked(low.path, tmp_path / "3"),
        reference,
        wanted.budget("fp16"),
        wanted.verification.comparing,
    )
    assert verdict.passed
    assert (tmp_path / "model.onnx.data").read_bytes() == b"somebody else's"


def linked(path: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in onnx_files.files(path):
        (folder / file.name).hardlink_to(file)
    return folder / path.name


def test_dropout_whose_training_mode_is_an_input_draws_random_numbers(tmp_path: Path) -> None:
    node = helper.make_node("Dropout", ["x", "ratio", "t"], ["y"], "drop", seed=0)
    inputs = [value("x", ["n", 4]), value("t", [], TensorProto.BOOL)]
    made = model([node], inputs=inputs, weights={"ratio": np.array(0.5, np.float32)})
    onnx.save(made, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="draws random numbers: node 'drop'"):
        steady.refuse_random(onnx.load(tmp_path / "m.onnx"))


def test_an_output_without_elements_is_compared(tmp_path: Path) -> None:
    empty = np.zeros((2, 0, 5), np.float32)
    batch = ReferenceBatch(inputs={"x": empty}, outputs={"y": empty}, labels=None)
    result = verify.compare(
        [batch], lambda _: {"y": empty}, DEFAULT_BUDGETS["fp32"], ComparisonRules()
    )
    assert result.over_budget == ()


UNSORTED = """m (float[batch, 4] x) => (float[batch, 4] y) <bool yes = {1}> {
    y = If (yes) <
        then_branch = one () => (float[batch, 4] out) {
            out = Add (twice, x)
            twice = Add (low, low)
        },
        else_branch = two () => (float[batch, 4] out) { out = Neg (x) }
    >
    low = Abs (x)
}"""


def test_nodes_are_put_behind_those_that_they_read(tmp_path: Path) -> None:
    """ONNX Runtime's FP16 converter writes its Casts at the end, and ONNX Runtime reads that."""
    made = toy_graphs.exported(tmp_path, toy_graphs.made(UNSORTED))
    x = np.array([[1, -2, 3, -4]], np.float32)
    assert run(made.path, x=x)["y"].tolist() == [[3, 2, 9, 4]]


def test_nodes_in_a_circle_are_refused(tmp_path: Path) -> None:
    circle = "m (float[batch, 4] x) => (float[batch, 4] y) { a = Add (x, y)\n y = Abs (a) }"
    with pytest.raises(SourceError, match="topologically sorted"):
        toy_graphs.exported(tmp_path, toy_graphs.made(circle))


def test_trees_are_not_called_a_quantization(tmp_path: Path) -> None:
    node = helper.make_node("Binarizer", ["x"], ["y"], domain="ai.onnx.ml")
    graph = model([node], inputs=[value("x", ["batch", 4])], outputs=[value("y", ["batch", 4])])
    graph.opset_import.add(domain="ai.onnx.ml", version=1)
    with pytest.raises(SourceError, match="operator Binarizer of domain") as raised:
        toy_graphs.exported(tmp_path, graph)
    assert "hummingbird" in str(raised.value)
    assert "quantization" not in str(raised.value)
