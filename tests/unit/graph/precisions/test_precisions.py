"""Each precision: what its graph holds, and what it computes."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_models import document

from enginefarm.documents.recipe import Recipe
from enginefarm.errors import CalibrationError, PrecisionError
from enginefarm.graph.model import constants, onnx_files, ort, walk
from enginefarm.graph.model.emulate import emulate
from enginefarm.graph.precisions import PRECISIONS, precision, qdq

RECIPE = Recipe.model_validate(document())
RANDOM = np.random.default_rng(0)
FEEDS = {"x": RANDOM.normal(size=(5, 3, 8, 8)).astype(np.float32)}


def weight(name: str, *shape: int) -> TensorProto:
    scale = 1 / np.sqrt(np.prod(shape[1:]))
    return numpy_helper.from_array(RANDOM.normal(0, scale, shape).astype(np.float32), name)


def model(opset: int = 20) -> onnx.ModelProto:
    """Conv, Relu, pooled, Gemm, MatMul, LayerNormalization, Softmax, a Cast of its own, and a
    product of two activations."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu"),
        helper.make_node("GlobalAveragePool", ["r1"], ["p1"], "pool"),
        helper.make_node("Flatten", ["p1"], ["f1"], "flatten"),
        helper.make_node("Gemm", ["f1", "w2"], ["g1"], "gemm", transB=1),
        helper.make_node("MatMul", ["g1", "w3"], ["m1"], "matmul"),
        helper.make_node("LayerNormalization", ["m1", "gamma"], ["n1"], "norm"),
        helper.make_node("Shape", ["n1"], ["s1"], "shape"),
        helper.make_node("Cast", ["s1"], ["s2"], "own_cast", to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["s2"], ["s3"], "largest", keepdims=0),
        helper.make_node("Div", ["n1", "s3"], ["d1"], "div"),
        helper.make_node("Transpose", ["d1"], ["t1"], "transpose"),
        helper.make_node("MatMul", ["d1", "t1"], ["a1"], "attention"),
        helper.make_node("Softmax", ["a1"], ["y"], "softmax"),
    ]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "n"])],
            [
                weight("w1", 16, 3, 3, 3),
                weight("b1", 16),
                weight("w2", 32, 16),
                weight("w3", 32, 24),
                numpy_helper.from_array(np.ones(24, np.float32), "gamma"),
            ],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=10,
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return onnx_files.write(model(), tmp_path / "in")


def convert(name: str, source: Path, tmp_path: Path, batches: object = None) -> onnx.ModelProto:
    batches = [FEEDS] if batches is None else batches
    report = precision(name).convert(source, tmp_path / name, RECIPE, batches)
    return onnx_files.read(report.path)


def run(made: onnx.ModelProto, feeds: dict = FEEDS) -> np.ndarray:
    session = ort.session_of(made, error=PrecisionError, what="test")
    return ort.run(session, feeds, error=PrecisionError, what="test")["y"]


def relative(wanted: np.ndarray, found: np.ndarray) -> float:
    return float(np.linalg.norm(wanted - found) / np.linalg.norm(wanted))


def types(made: onnx.ModelProto) -> dict[str, int]:
    """dtype of every tensor, as onnx infers them from scratch."""
    del made.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(made, strict_mode=True).graph
    found = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
    return found | {tensor.name: tensor.data_type for tensor in inferred.initializer}


@pytest.mark.parametrize(
    ("name", "limit"), [("fp32", 0), ("fp16", 2e-3), ("bf16", 1e-2), ("int8", 0.03), ("fp8", 0.05)]
)
def test_every_precision_computes_nearly_the_same(
    source: Path, tmp_path: Path, name: str, limit: float
) -> None:
    made = convert(name, source, tmp_path)
    wanted = run(model())
    found = run(made if name == "fp32" else emulate(made))
    assert found.dtype == np.float32, "inputs and outputs keep their dtypes"
    assert relative(run(onnx_files.read(source)), found) <= limit
    assert name == "fp32" or not np.array_equal(wanted, found)


@pytest.mark.parametrize("name", list(PRECISIONS))
def test_the_same_graph_gives_the_same_bytes(source: Path, tmp_path: Path, name: str) -> None:
    for folder in ("a", "b"):
        precision(name).convert(source, tmp_path / folder, RECIPE, [FEEDS])
    first = (tmp_path / "a" / "model.onnx").read_bytes()
    assert first == (tmp_path / "b" / "model.onnx").read_bytes()


@pytest.mark.parametrize(("name", "low"), [("fp16", "FLOAT16"), ("bf16", "BFLOAT16")])
def test_products_are_narrow_and_sensitive_operators_wide(
    source: Path, tmp_path: Path, name: str, low: str
) -> None:
    made = convert(name, source, tmp_path)
    narrow = TensorProto.DataType.Value(low)
    found = types(made)
    for node in made.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul", "Softmax"):
            assert found[node.input[0]] == narrow, node.name
        if node.op_type == "LayerNormalization":
            assert found[node.input[0]] == TensorProto.FLOAT
    stored = Counter(tensor.data_type for tensor in made.graph.initializer)
    assert stored == {narrow: 4, TensorProto.FLOAT: 1}, "all but LayerNormalization's, once"


@pytest.mark.parametrize(("name", "wide"), [("fp16", False), ("bf16", True)])
def test_operators_that_tensorrt_lacks_in_bf16_stay_wide(
    tmp_path: Path, name: str, wide: bool
) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("HardSwish", ["h"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [weight("w", 4, 4)],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = onnx_files.write(made, tmp_path / "in")
    converted = convert(name, path, tmp_path)
    found = types(converted)
    swish = next(node for node in converted.graph.node if node.op_type == "HardSwish")
    assert (found[swish.input[0]] == TensorProto.FLOAT) == wide


def test_a_number_outside_the_range_of_fp16_stays_finite_and_above_zero() -> None:
    values = np.array([3e38, -3e38, 1e-12, -1e-12, 0, np.inf, 1.5], np.float32)
    low = constants.lowered(numpy_helper.from_array(values, "v"), "v", TensorProto.FLOAT16)
    found = numpy_helper.to_array(low)
    assert found[:2].tolist() == [65504, -65504]
    assert found[2] > 0 > found[3]
    assert found[4:].tolist() == [0, np.inf, 1.5]


def test_a_branch_computes_nearly_the_same(tmp_path: Path) -> None:
    def body(name: str, op: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, ["n", 4])
        return helper.make_graph([helper.make_node(op, ["h"], [f"{name}_out"])], name, [], [out])

    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("ReduceSum", ["h"], ["sum"], keepdims=0),
            helper.make_node("Greater", ["sum", "zero"], ["positive"]),
            helper.make_node(
                "If",
                ["positive"],
                ["y"],
                then_branch=body("then", "Neg"),
                else_branch=body("else", "Abs"),
            ),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [weight("w", 4, 4), numpy_helper.from_array(np.float32(0), "zero")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    source = onnx_files.write(made, tmp_path / "in")
    feeds = {"x": RANDOM.normal(size=(3, 4)).astype(np.float32)}
    wanted = run(onnx_files.read(source), feeds)
    found = run(convert("fp16", source, tmp_path), feeds)
    assert relative(wanted, found) < 2e-3
    for name, limit in (("fp16", 2e-3), ("bf16", 2e-2)):
        assert relative(wanted, run(emulate(convert(name, source, tmp_path)), feeds)) < limit


def test_bf16_emulation_rounds_every_product(source: Path, tmp_path: Path) -> None:
    """Against a computation in numpy, rounded by ml_dtypes after each step."""
    made = onnx.ModelProto()
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16])],
        [weight("w", 64, 16)],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    x = RANDOM.normal(size=(8, 64)).astype(np.float32)
    w = numpy_helper.to_array(made.graph.initializer[0])

    def rounded(values: np.ndarray) -> np.ndarray:
        return values.astype(ml_dtypes.bfloat16).astype(np.float32)

    wanted = np.maximum(rounded(rounded(x) @ rounded(w)), 0)
    path = onnx_files.write(made, tmp_path / "in")
    found = run(emulate(convert("bf16", path, tmp_path)), {"x": x})
    np.testing.assert_allclose(found, wanted, rtol=2**-7)
    assert np.array_equal(found, rounded(found)), "every output is a BF16 number"


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_quantized_graphs_have_their_q_and_dq(source: Path, tmp_path: Path, name: str) -> None:
    report = precision(name).convert(source, tmp_path / name, RECIPE, [FEEDS])
    made = onnx_files.read(report.path)
    count = Counter(node.op_type for node in made.graph.node)
    assert (count["QuantizeLinear"], count["DequantizeLinear"]) == (3, 6), "Conv, Gemm, MatMul"
    assert report.details["quantized_operators"] == 3, "attention has no weights: not quantized"
    producers = {node.output[0]: node.op_type for node in made.graph.node}
    for node in made.graph.node:
        if node.name in ("conv", "gemm", "matmul"):
            feeding = [producers[node.input[0]], producers[node.input[1]]]
            assert feeding == ["DequantizeLinear"] * 2, "no Cast between: it would keep them apart"
    tensors = {tensor.name: tensor for tensor in made.graph.initializer}
    assert tensors["w1_quantized"].data_type == TensorProto.DataType.Value(
        "INT8" if name == "int8" else "FLOAT8E4M3FN"
    )
    assert "w1" not in tensors, "the FP32 weight is gone"


def test_int8_weights_are_per_channel_symmetric_and_exact_to_half_a_step(
    source: Path, tmp_path: Path
) -> None:
    made = convert("int8", source, tmp_path)
    tensors = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    original = {t.name: numpy_helper.to_array(t) for t in onnx_files.read(source).graph.initializer}
    scales = {
        name: array for name, array in tensors.items() if name.startswith("w") and "scale" in name
    }
    assert {name: array.shape for name, array in scales.items()} == {
        "w1_scale_low": (16,),
        "w2_scale_low": (32,),
        "w3_scale_low": (24,),
    }
    for name, axis in (("w1", 0), ("w2", 0), ("w3", 1)):
        shape = [1] * original[name].ndim
        shape[axis] = -1
        scale = scales[f"{name}_scale_low"].astype(np.float32).reshape(shape)
        back = tensors[f"{name}_quantized"].astype(np.float32) * scale
        assert np.abs(back - original[name]).max() <= scale.max() * 0.5001
        assert not tensors[f"{name}_zero_point"].any()


def test_entropy_and_minmax_give_different_scales(source: Path, tmp_path: Path) -> None:
    feeds = {"x": RANDOM.normal(size=(64, 3, 8, 8)).astype(np.float32)}
    feeds["x"][0, 0, 0, 0] = 60.0
    scales = {}
    for method in ("entropy", "minmax"):
        calibration = RECIPE.calibration.model_copy(update={"method": method})
        recipe = RECIPE.model_copy(update={"calibration": calibration})
        report = precision("int8").convert(source, tmp_path / method, recipe, [feeds] * 3)
        tensors = {t.name: t for t in onnx_files.read(report.path).graph.initializer}
        scales[method] = float(numpy_helper.to_array(tensors["x_scale_low"]))
    assert scales["minmax"] == pytest.approx(60 / 127, rel=1e-3)
    assert scales["entropy"] < scales["minmax"] / 4


def test_an_older_onnx_is_brought_to_the_opset_that_is_needed(tmp_path: Path) -> None:
    source = onnx_files.write(model(opset=17), tmp_path / "in")
    wanted = run(onnx_files.read(source))
    for name, limit in (("int8", 0.03), ("fp16", 2e-3)):
        assert relative(wanted, run(convert(name, source, tmp_path))) < limit
    assert walk.opset(convert("bf16", source, tmp_path)) == 22


def test_a_graph_with_nothing_to_quantize_is_refused(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    source = onnx_files.write(made, tmp_path / "in")
    with pytest.raises(PrecisionError, match="nothing to quantize"):
        precision("int8").convert(source, tmp_path / "out", RECIPE, [FEEDS])


def test_a_graph_that_is_quantized_already_is_refused(source: Path, tmp_path: Path) -> None:
    convert("int8", source, tmp_path)
    with pytest.raises(PrecisionError, match="has Q/DQ nodes already"):
        precision("int8").convert(tmp_path / "int8" / "model.onnx", tmp_path / "o", RECIPE, [FEEDS])


def test_a_silently_unquantized_graph_is_an_error(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qdq, "insert", lambda *_: qdq.Counts(3, 6, 3))
    with pytest.raises(PrecisionError, match="the graph has 0 QuantizeLinear"):
        convert("int8", source, tmp_path)


def test_no_batches(source: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="no batch"):
        convert("int8", source, tmp_path, batches=[])


def test_fp32_of_a_half_model_computes_in_fp32(source: Path, tmp_path: Path) -> None:
    half = convert("fp16", source, tmp_path)
    onnx.save(half, tmp_path / "half.onnx")
    made = convert("fp32", tmp_path / "half.onnx", tmp_path)
    found = types(made)
    assert {found[name] for name in ("c1", "g1", "a1")} == {TensorProto.FLOAT}
    assert relative(run(half), run(made)) < 1e-2


def test_every_choice_is_part_of_the_use() -> None:
    digest = "0" * 64
    uses = [precision(name).use(RECIPE, digest) for name in PRECISIONS]
    assert len({use.sha256() for use in uses}) == len(PRECISIONS)
    for change in ({"method": "minmax"}, {"batches": 5}, {"batch_size": 2}, {"seed": 3}):
        calibration = RECIPE.calibration.model_copy(update=change)
        changed = RECIPE.model_copy(update={"calibration": calibration})
        assert precision("int8").use(changed, digest) != precision("int8").use(RECIPE, digest)
        assert precision("fp16").use(changed, digest) == precision("fp16").use(RECIPE, digest)
    with pytest.raises(CalibrationError):
        precision("int8").use(RECIPE, None)
    with pytest.raises(PrecisionError, match="no precision is called 'int4'"):
        precision("int4")


def test_planning_a_precision_loads_no_library() -> None:
    script = (
        "import sys; from enginefarm.graph.precisions import PRECISIONS, precision;"
        "from enginefarm.documents.recipe import Recipe;"
        f"recipe = Recipe.model_validate({document()!r});"
        "[precision(name).use(recipe, '0' * 64) for name in PRECISIONS];"
        "print(sorted({'torch', 'onnx', 'numpy', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
