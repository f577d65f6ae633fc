"""What a toolchain lacks is known from the graph's operators."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import onnx
import onnx.parser
import pytest
import tiny_onnx

from enginefarm.documents.spec import GpuTarget
from enginefarm.graph.model import onnx_files, onnx_shapes, operators
from enginefarm.graph.precisions import finish
from enginefarm.graph.precisions.use import BY_NAME, BY_SEARCH
from enginefarm.toolchains.missing_operators import NOWHERE, lacking

trt: Any = import_module("tensorrt_rtx_bindings")

LOW = onnx.TensorProto.FLOAT16
T4 = GpuTarget(label="t4", compute_capability="7.5")
L4 = GpuTarget(label="l4", compute_capability="8.9")


def test_an_fp32_matrix_product_on_7_5_is_named_and_other_rows_go_on(tmp_path: Path) -> None:
    path = tiny_onnx.float_gemm(tmp_path / "m.onnx")
    found = operators.names(onnx_files.graph_only(path))
    assert found == {"MatMul": "matmul0"}
    error = lacking("tensorrt-rtx", T4, "fp32", found)
    assert error is not None
    assert "node 'matmul0' (MatMul) cannot be built for t4 in fp32" in error.what
    assert error.fix
    assert lacking("tensorrt-rtx", T4, "fp16", found) is None
    assert lacking("tensorrt-rtx", L4, "fp32", found) is None
    assert lacking("tensorrt", T4, "fp32", found) is None


@pytest.mark.parametrize(
    ("inside", "reads", "wide"),
    [
        # Each was built with TensorRT-RTX 1.7.1 for 7.5: it refuses those that are wide.
        ([("MatMul", "c w32 d")], "d", {}),
        ([("MatMul", "c w32 d"), ("Relu", "d y")], "", {"MatMul": "n0"}),
        ([("Exp", "c c3"), ("MatMul", "c3 w32 d")], "d", {"Exp": "n0", "MatMul": "n1"}),
        ([("MatMul", "c w32 d"), ("Add", "d d e")], "e", {"MatMul": "n0", "Add": "n1"}),
        ([("Identity", "c t"), ("MatMul", "t c d")], "d", {"Identity": "n0", "MatMul": "n1"}),
    ],
)
def test_a_product_that_a_16_bit_graph_keeps_wide_is_named_on_7_5(
    inside: list[tuple[str, str]], reads: str, wide: dict[str, str]
) -> None:
    def cast(source: str, made: str, to: int) -> onnx.NodeProto:
        return onnx.helper.make_node("Cast", [source], [made], f"cast_{made}", to=to)

    nodes = [cast("x", "a", LOW), onnx.helper.make_node("MatMul", ["a", "w"], ["b"], "mm")]
    nodes.append(cast("b", "c", onnx.TensorProto.FLOAT))
    for index, (operator, values) in enumerate(inside):
        *given, made = values.split()
        nodes.append(onnx.helper.make_node(operator, given, [made], f"n{index}"))
    if reads:
        nodes += [cast(reads, "l", LOW), onnx.helper.make_node("Relu", ["l"], ["r"], "relu")]
        nodes.append(cast("r", "y", onnx.TensorProto.FLOAT))
    weights = [
        onnx.helper.make_tensor(name, kind, [4, 4], [0.5] * 16)
        for name, kind in (("w", LOW), ("w32", onnx.TensorProto.FLOAT))
    ]
    given, out = (tiny_onnx.value(name, [4, 4]) for name in "xy")
    graph = onnx.helper.make_graph(nodes, "g", [given], [out], weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    onnx_shapes.infer_types(model)
    details = finish.wide_nodes(model)
    assert details["wide_operators"] == wide
    named = operators.names(model)
    error = lacking("tensorrt-rtx", T4, "fp16", named, details)
    assert (error is not None) == ("MatMul" in wide)
    if error is not None:
        assert f"node {wide['MatMul']!r} (MatMul) cannot be built for t4 in fp16" in error.what
        assert "kept in FP32" in error.what
    assert lacking("tensorrt-rtx", L4, "fp16", named, details) is None


def test_an_operator_that_is_nowhere(tmp_path: Path) -> None:
    path = tiny_onnx.nonzero(tmp_path / "m.onnx")
    found = operators.names(onnx_files.graph_only(path))
    error = lacking("tensorrt-rtx", L4, "fp16", found)
    assert error is not None
    assert "'find_nonzero' (NonZero)" in error.what


@pytest.mark.parametrize("operator", ["ConvInteger", "DynamicQuantizeLinear", "QLinearConv"])
def test_what_a_quantizer_wrote_is_quantized_here_instead(operator: str) -> None:
    error = lacking("tensorrt-rtx", L4, "fp16", {operator: "quant", "NonZero": "nz"})
    assert error is not None
    assert f"'quant' ({operator})" in error.what
    assert "start from the model in FP32" in error.fix


@pytest.mark.parametrize(("dims", "name"), [([4, 3, 3, 3, 3], "Conv3d"), ([4, 3, 3, 3], "Conv")])
def test_a_convolution_over_three_dims_has_a_name_of_its_own(dims: list[int], name: str) -> None:
    size = 1
    for dim in dims:
        size *= dim
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, dims, [0.0] * size)
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], "conv")
    graph = onnx.helper.make_graph([node], "g", [], [], [weight])
    assert operators.names(onnx.helper.make_model(graph)) == {name: "conv"}


def recurrent(operator: str, **inputs: str) -> dict[str, str]:
    given = ["x", "w", "r", "", inputs.get("lens", ""), "", "", inputs.get("peepholes", "")]
    node = onnx.helper.make_node(operator, given, ["y"], "rec")
    return operators.names(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [])))


@pytest.mark.parametrize(
    ("operator", "inputs"),
    [
        ("LSTM", {"lens": "n"}),
        ("LSTM", {"peepholes": "p"}),
        ("GRU", {"lens": "n"}),
        ("RNN", {"lens": "n"}),
    ],
)
def test_no_precision_is_advised_where_none_can_be_built(
    operator: str, inputs: dict[str, str]
) -> None:
    """TensorRT-RTX takes these inputs only in FP32, so building in FP16 does not help on 7.5."""
    found = recurrent(operator, **inputs)
    for precision in ("fp32", "fp16"):
        error = lacking("tensorrt-rtx", T4, precision, found)
        assert error is not None
        assert "node 'rec'" in error.what
        assert "fp16" not in error.fix
        assert "keep_wide" not in error.fix
        assert lacking("tensorrt-rtx", L4, precision, found) is None
    plain = lacking("tensorrt-rtx", T4, "fp32", recurrent(operator))
    assert plain is not None
    assert "fp16" in plain.fix
    assert lacking("tensorrt-rtx", T4, "fp16", recurrent(operator)) is None


def test_what_no_precision_has_is_said_before_what_fp32_lacks() -> None:
    error = lacking("tensorrt-rtx", T4, "fp32", {"MatMul": "mm", "NonZero": "nz"})
    assert error is not None
    assert "'nz' (NonZero)" in error.what


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        (BY_NAME, "take it out of `keep_wide`"),
        (BY_SEARCH, "widen the budget"),
        ("a reaches 1e+06; FP16 ends at 65504", "use toolchain `tensorrt`"),
    ],
)
def test_the_remedy_for_a_node_that_is_kept_wide_fits_its_reason(reason: str, remedy: str) -> None:
    details = {
        "wide_operators": {"MatMul": "mm"},
        "kept_wide": [{"node": "mm", "op_type": "MatMul", "reason": reason, "gain_db": None}],
    }
    error = lacking("tensorrt-rtx", T4, "fp16", {"MatMul": "mm"}, details)
    assert error is not None
    assert error.what.endswith(f"kept in FP32, because {reason}")
    assert error.fix.startswith(remedy)


@pytest.mark.parametrize(("inputs", "buildable"), [(["x"], True), (["x", "w"], False)])
def test_an_einsum_of_one_input_is_no_product(inputs: list[str], buildable: bool) -> None:
    """TensorRT-RTX builds a diagonal in FP32 on 7.5."""
    node = onnx.helper.make_node("Einsum", inputs, ["y"], "sum", equation="bii->bi")
    graph = onnx.helper.make_graph([node], "g", [], [])
    found = operators.names(onnx.helper.make_model(graph))
    assert (lacking("tensorrt-rtx", T4, "fp32", found) is None) == buildable


def parser() -> Any:
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    network = trt.Builder(logger).create_network(0)
    return trt.OnnxParser(network, logger), network, logger


def test_every_operator_that_the_parser_does_not_have_is_in_the_table() -> None:
    asked, *_ = parser()
    every: set[str] = {one.name for one in onnx.defs.get_all_schemas() if not one.domain}
    missing = {name for name in every if not asked.supports_operator(name)}
    assert missing <= NOWHERE
    # It has these by name, and refuses each of them: docs/measurements/onnx-nodes.md.
    assert {*NOWHERE} - missing == {"NonMaxSuppression", "NonZero", "RoiAlign"}


IMAGE = "float[1, 2, 8, 8] x"


@pytest.mark.parametrize(
    ("node", "called"),
    [
        ("y, i = MaxPool <kernel_shape = [2, 2]> (x)", "MaxPool with indices"),
        ("y = MaxPool <kernel_shape=[2, 2], dilations=[1, 2]> (x)", "pooling with dilations"),
        ("y = AveragePool <kernel_shape=[2, 2], dilations=[2, 2]> (x)", "pooling with dilations"),
        ("y = LpPool <kernel_shape = [2, 2], p = 3> (x)", "a norm other than L1 and L2"),
        ("y = LpNormalization <p = 0> (x)", "a norm other than L1 and L2"),
        ('y = Resize <antialias = 1, mode = "linear"> (x, , scales)', "Resize with antialias"),
        (
            'y = Resize <keep_aspect_ratio_policy = "not_larger"> (x, , , sizes)',
            "Resize that keeps the aspect ratio",
        ),
        (
            'y = Resize <coordinate_transformation_mode = "half_pixel_symmetric"> (x, , scales)',
            "Resize in a rare mode",
        ),
        (
            "y, m, v = BatchNormalization <training_mode = 1> (x, two, two, two, two)",
            "BatchNormalization in training mode",
        ),
        (
            'y = ScatterElements <reduction = "add"> (x, places, x)',
            "Scatter with a reduction",
        ),
        ("y = LSTM <hidden_size = 1, input_forget = 1> (z, w, r)", "LSTM with input_forget"),
    ],
)
def test_a_form_of_an_operator_that_the_parser_refuses_has_a_name(node: str, called: str) -> None:
    outputs = "float[a, b, c, d] y" + (", int64[a, b, c, d] i" if "i = " in node else "")
    made = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["": 20]> g ({IMAGE}, float[2, 1, 3] z, int64[1, 2, 8, 8] '
        f"places) => ({outputs}) <float[4] scales = {{1, 1, 0.5, 0.5}}, int64[4] sizes = "
        "{1, 2, 4, 4}, float[2] two = {1, 2}, float[1, 4, 3] w = {1,1,1,1,1,1,1,1,1,1,1,1}, "
        f"float[1, 4, 1] r = {{1, 1, 1, 1}}> {{ {node} }}"
    )
    assert operators.names(made) == {called: "y"}
    asked, _network, _logger = parser()
    assert not asked.parse(made.SerializeToString()), "the parser takes it now"
    error = lacking("tensorrt-rtx", L4, "fp16", operators.names(made))
    assert error is not None
    assert f"node 'y' ({called}) cannot be built for l4" in error.what


@pytest.mark.parametrize(
    "node",
    [
        "y = MaxPool <kernel_shape = [2, 2], dilations = [1, 1]> (x)",
        "y = LpPool <kernel_shape = [2, 2], p = 1> (x)",
        'y = Resize <coordinate_transformation_mode = "asymmetric"> (x, , scales)',
        "y = BatchNormalization (x, two, two, two, two)",
    ],
)
def test_the_usual_forms_are_called_what_they_are(node: str) -> None:
    made = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["": 20]> g ({IMAGE}) => (float[a, b, c, d] y)'
        f" <float[4] scales = {{1, 1, 0.5, 0.5}}, float[2] two = {{1, 2}}> {{ {node} }}"
    )
    (name,) = operators.names(made)
    assert name == made.graph.node[0].op_type
    asked, _network, _logger = parser()
    assert asked.parse(made.SerializeToString())


def test_a_norm_over_windows_that_leave_the_input_is_refused_though_the_parser_takes_it() -> None:
    made = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["": 20]> g ({IMAGE}) => (float[a, b, c, d] y)'
        "{ y = LpPool <kernel_shape = [3, 3], strides = [3, 3], ceil_mode = 1> (x) }"
    )
    error = lacking("tensorrt-rtx", L4, "fp16", operators.names(made))
    assert error is not None
    assert "LpPool with ceil_mode" in error.what


@pytest.mark.parametrize("toolchain", ["tensorrt", "trtexec", "tensorrt-rtx"])
def test_a_cache_that_is_updated_in_place_is_refused(toolchain: str) -> None:
    """TensorRT's parser takes it, and its engine wants one memory for two tensors."""
    cache = "float[2, 2, 6, 8]"
    made = onnx.parser.parse_model(
        '<ir_version: 12, opset_import: ["": 24]>'
        f"g ({cache} x, float[2, 2, 1, 8] u, int64[2] w) => ({cache} y)"
        "{ y = TensorScatter (x, u, w) }"
    )
    asked, _network, _logger = parser()
    assert asked.parse(made.SerializeToString())
    error = lacking(toolchain, L4, "fp16", operators.names(made))
    assert error is not None
    assert "node 'y' (TensorScatter) cannot be built for l4" in error.what
    assert "in place" in error.why


def test_an_old_batch_normalization_trains_if_it_has_more_results() -> None:
    made = onnx.parser.parse_model(
        f'<ir_version: 7, opset_import: ["": 13]> g ({IMAGE}, float[2] s) => (float[a, b, c, d] y)'
        "{ y, m, v, sm, sv = BatchNormalization (x, s, s, s, s) }"
    )
    assert operators.names(made) == {"BatchNormalization in training mode": "y"}
    asked, _network, _logger = parser()
    assert not asked.parse(made.SerializeToString())
