"""Emulated 16-bit arithmetic: against numpy's float16 and ml_dtypes' bfloat16, number by number."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from toy_graphs import run

from enginefarm.errors import PrecisionError
from enginefarm.graph.model import onnx_files
from enginefarm.graph.model.emulate import emulate, narrow
from enginefarm.graph.precisions import mixed

F32, F16, BF16, BOOL, I64 = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.BOOL,
    TensorProto.INT64,
)
NUMPY = {F16: np.float16, BF16: ml_dtypes.bfloat16}


def value(name: str, dtype: int = F32, shape: list | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, ["n"] if shape is None else shape)


def model(nodes: list, inputs: list, outputs: list, weights: tuple = ()) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def rounded(values: np.ndarray, low: int) -> np.ndarray:
    with np.errstate(all="ignore"):
        return values.astype(NUMPY[low]).astype(np.float32)


def every_kind() -> np.ndarray:
    """Random bits, every FP16 number, every middle between two, and the edges of the range."""
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = np.sort(halves[np.isfinite(halves)]).astype(np.float32)
    edges = [65504, 65519.996, 65520, 65536, 3.4e38, np.inf, 1e-8, 2**-24, 2**-25, 2**-14]
    edges += [2**-25 * (1 + 2**-20), 0.0, 1 + 2**-11, 1 + 3 * 2**-11, 3.3953e38, 1e-45]
    edge = np.array(edges, np.float32)
    found = np.concatenate([bits, halves, (halves[1:] + halves[:-1]) / 2, edge, -edge])
    return found[~np.isnan(found)].astype(np.float32)


@pytest.mark.parametrize("low", [F16, BF16])
@pytest.mark.parametrize("between", [True, False], ids=["between-operators", "alone"])
def test_a_result_is_rounded_as_numpy_rounds_it(low: int, between: bool) -> None:
    x = every_kind()
    nodes = [helper.make_node("Cast", ["x"], ["low"], to=low)]
    if between:
        nodes = [helper.make_node("Neg", ["x"], ["minus"]), *nodes]
        nodes[1].input[0] = "minus"
        nodes += [helper.make_node("Neg", ["low"], ["back"])]
    nodes.append(helper.make_node("Cast", [nodes[-1].output[0]], ["y"], to=F32))
    found = run(emulate(model(nodes, [value("x")], [value("y")])), x=x)["y"]
    np.testing.assert_array_equal(found, rounded(x, low))


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"])
def test_no_level_of_optimization_takes_a_rounding_out(level: str) -> None:
    """A chain in which every step is off without its rounding: 1 + 2^-11 is 1 in FP16."""
    import onnxruntime

    nodes = [helper.make_node("Cast", ["x"], ["v0"], to=F16)]
    for step in range(8):
        nodes.append(helper.make_node("Add", [f"v{step}", "small"], [f"v{step + 1}"]))
    nodes.append(helper.make_node("Cast", ["v8"], ["y"], to=F32))
    small = numpy_helper.from_array(np.float16([2**-11]), "small")
    made = emulate(model(nodes, [value("x")], [value("y")], (small,)))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    assert session.run(None, {"x": np.ones(3, np.float32)})[0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("low", [F16, BF16])
def test_products_add_in_fp32_and_round_once(low: int) -> None:
    rng = np.random.default_rng(1)
    x, w = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 512), (512, 8)))
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    source = model(
        nodes,
        [value("x", shape=["n", 512])],
        [value("y", shape=["n", 8])],
        (numpy_helper.from_array(w, "w"),),
    )
    found = run(emulate(mixed.cast(source, low)), x=x)["y"]
    wanted = rounded(rounded(x, low) @ rounded(w, low), low)
    step = 2**-10 if low == F16 else 2**-7  # one unit, where the order of additions tips it
    np.testing.assert_allclose(found, wanted, rtol=step)
    assert (found == wanted).mean() > 0.9
    np.testing.assert_array_equal(found, rounded(found, low))


def test_a_value_that_fp16_cannot_hold_is_seen_although_the_output_could_be_held() -> None:
    """x * x is 1e6, an FP16 infinity, and the division would bring it back."""
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"]),
        helper.make_node("Div", ["square", "big"], ["y"]),
    ]
    source = model(
        nodes, [value("x")], [value("y")], (numpy_helper.from_array(np.float32([1000]), "big"),)
    )
    x = np.float32([1000, 2])
    assert run(emulate(mixed.cast(source, F16)), x=x)["y"].tolist() == [
        np.inf,
        0.004001617431640625,
    ]


def test_bodies_of_if_and_loop_and_scan_are_rounded() -> None:
    def body(name: str, nodes: list, inputs: list, outputs: list) -> onnx.GraphProto:
        return helper.make_graph(nodes, name, inputs, outputs)

    square = body("square", [helper.make_node("Mul", ["h", "h"], ["sq"])], [], [value("sq", F16)])
    same = body("same", [helper.make_node("Identity", ["h"], ["id"])], [], [value("id", F16)])
    step = body(
        "step",
        [
            helper.make_node("Mul", ["state", "state"], ["next"]),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        [value("i", I64, []), value("go", BOOL, []), value("state", F16)],
        [value("on", BOOL, []), value("next", F16)],
    )
    row = body(
        "row",
        [
            helper.make_node("Add", ["sum", "element"], ["total"]),
            helper.make_node("Identity", ["total"], ["each"]),
        ],
        [value("sum", F16, []), value("element", F16, [])],
        [value("total", F16, []), value("each", F16, [])],
    )
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=F16),
        helper.make_node("If", ["b"], ["branch"], then_branch=square, else_branch=same),
        helper.make_node("Loop", ["times", "", "h"], ["looped"], body=step),
        helper.make_node("Scan", ["zero", "h"], ["last", "sums"], body=row, num_scan_inputs=1),
    ]
    for name in ("branch", "looped", "sums"):
        nodes.append(helper.make_node("Cast", [name], [f"{name}_y"], to=F32))
    made = model(
        nodes,
        [value("x"), value("b", BOOL, [])],
        [value("branch_y"), value("looped_y"), value("sums_y")],
        (
            numpy_helper.from_array(np.int64(2), "times"),
            numpy_helper.from_array(np.float16(0), "zero"),
        ),
    )
    x = np.float32([1 + 2**-10, 300, 2049, 2049])
    found = run(emulate(made), x=x, b=np.array(True))
    h = x.astype(np.float16)
    with np.errstate(over="ignore"):
        assert found["branch_y"].tolist() == (h * h).tolist()
        assert found["looped_y"].tolist() == ((h * h) * (h * h)).tolist()
    total, sums = np.float16(0), []
    for element in h:
        total = np.float16(total + element)
        sums.append(float(total))
    assert found["sums_y"].tolist() == sums


@pytest.mark.parametrize("low", [F16, BF16])
def test_a_half_model_keeps_its_inputs_and_its_outputs_are_fp32(low: int) -> None:
    """Inputs of BF16, which numpy has not, are given as FP32 and rounded."""
    source = model(
        [helper.make_node("Add", ["x", "x"], ["y"])], [value("x", low)], [value("y", low)]
    )
    assert narrow(source) == (TensorProto.DataType.Name(low),)
    made = emulate(source)
    x = np.array([1 + 2**-9, 2049, 3e38 if low == BF16 else 4e4], np.float32)
    given = x.astype(np.float16) if low == F16 else x
    found = run(made, x=given)["y"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, rounded(rounded(x, low) * 2, low))


def test_scatter_with_a_reduction_runs_and_is_rounded() -> None:
    """ONNX Runtime's CPU provider cannot run it in FP16 at all."""
    nodes = [
        helper.make_node("ScatterND", ["x", "where", "more"], ["y"], reduction="add"),
    ]
    source = model(
        nodes,
        [value("x", shape=[4])],
        [value("y", shape=[4])],
        (
            numpy_helper.from_array(np.int64([[1]]), "where"),
            numpy_helper.from_array(np.float32([1]), "more"),
        ),
    )
    found = run(emulate(mixed.cast(source, F16)), x=np.float32([1, 2048, 3, 4]))["y"]
    assert found.tolist() == [1, 2048, 3, 4], "2049 is no FP16 number"


def test_what_products_read_through_dequantize_is_not_rounded_on_the_way() -> None:
    """Engines fuse the two: 127 steps of 0.00787 are no FP16 number, and need not be one."""
    scale = np.float16([0.00787, 0.00787])
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=F16),
        helper.make_node("DequantizeLinear", ["w", "scale"], ["wide"], axis=1),
        helper.make_node("MatMul", ["h", "wide"], ["product"]),
        helper.make_node("Cast", ["product"], ["y"], to=F32),
        helper.make_node("DequantizeLinear", ["w", "scale"], ["stored"], axis=1),
        helper.make_node("Cast", ["stored"], ["z"], to=F32),
    ]
    source = model(
        nodes,
        [value("x", shape=["n", 1])],
        [value("y", shape=["n", 2]), value("z", shape=[1, 2])],
        (
            numpy_helper.from_array(np.int8([[127, 125]]), "w"),
            numpy_helper.from_array(scale, "scale"),
        ),
    )
    exact = np.float32([127, 125]) * scale.astype(np.float32)
    found = run(emulate(source), x=np.float32([[1024], [1]]))
    assert found["y"][0].tolist() == rounded(1024 * exact, F16).tolist()
    assert found["z"][0].tolist() == rounded(exact, F16).tolist()


def test_without_roundings_it_is_the_same_graph_in_fp32() -> None:
    source = model([helper.make_node("Mul", ["x", "x"], ["y"])], [value("x")], [value("y")])
    low = mixed.cast(source, F16)
    x = np.float32([1000, 1.0001])
    copy = onnx.ModelProto()
    copy.CopyFrom(low)
    np.testing.assert_array_equal(run(emulate(copy, rounded=False), x=x)["y"], x * x)
    assert run(emulate(low), x=x)["y"].tolist() == [np.inf, 1]


def test_names_that_it_makes_are_free(tmp_path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=F16),
        helper.make_node("Add", ["h", "h"], ["h__exact"]),
        helper.make_node("Add", ["h", "h__exact"], ["h__low"]),
        helper.make_node("Cast", ["h__low"], ["y"], to=F32),
    ]
    made = emulate(model(nodes, [value("x")], [value("y")]))
    path = onnx_files.write(made, tmp_path)
    onnx_files.check(path, error=PrecisionError, what="emulated")
    assert run(made, x=np.float32([1]))["y"].tolist() == [3]


def test_a_value_whose_dtype_is_not_known_is_an_error() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=F16),
        helper.make_node("Strange", ["h"], ["s"], domain="own"),
        helper.make_node("Cast", ["s"], ["y"], to=F32),
    ]
    made = model(nodes, [value("x")], [value("y")])
    made.opset_import.append(helper.make_opsetid("own", 1))
    with pytest.raises(PrecisionError, match="dtype of 's' cannot be inferred"):
        emulate(made)
