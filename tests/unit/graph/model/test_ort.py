"""Which ONNX Runtime is here, in whichever distribution it came."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_onnx
from onnx import numpy_helper, parser

from enginefarm.errors import ExportError, HostError, PrecisionError
from enginefarm.graph.model import ort

Installed = Callable[..., None]


def test_a_graph_that_optimizations_make_invalid_runs_without(tmp_path: Path) -> None:
    """ONNX Runtime 1.32 puts a QuantizeLinear behind this Reshape, with two types of zero point."""
    made = parser.parse_model("""<ir_version: 10, opset_import: ["" : 21]>
        agraph (float[n, 8] x) => (float[m] y) {
            q = QuantizeLinear (x, scale, zero)
            d = DequantizeLinear (q, scale, zero)
            flat = Reshape (d, sizes)
            y = Concat <axis = 0> (flat, end)
        }""")
    weights = {"scale": np.float32(0.5), "zero": np.int8(0), "sizes": np.array([-1], np.int64)}
    weights["end"] = np.zeros(1, np.float32)
    made.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()
    )
    session = ort.session_of(made, error=PrecisionError, what="test")
    x = np.arange(8, dtype=np.float32)[None]
    found = ort.run(session, {"x": x}, error=PrecisionError, what="test")
    np.testing.assert_array_equal(found["y"], [*x[0], 0])


def test_it_is_the_one_that_is_imported() -> None:
    assert ort.version() == f"onnxruntime {onnxruntime.__version__}"


@pytest.mark.parametrize("border", ["FLOAT", "BFLOAT16"])
def test_a_graph_in_bfloat16_is_computed_in_fp32(tmp_path: Path, border: str) -> None:
    def cast(source: str, made: str, to: int) -> onnx.NodeProto:
        return onnx.helper.make_node("Cast", [source], [made], f"cast_{made}", to=to)

    low = onnx.TensorProto.BFLOAT16
    nodes = [cast("x", "a", low), onnx.helper.make_node("MatMul", ["a", "w"], ["b"], "linear")]
    nodes.append(cast("b", "y", onnx.TensorProto.FLOAT))
    nodes[-1].attribute[0].i = kind = onnx.TensorProto.DataType.Value(border)
    weight = onnx.helper.make_tensor("w", low, [3, 3], [0.5] * 9)
    given, out = (tiny_onnx.value(name, [2, 3], kind) for name in "xy")
    path = tiny_onnx.save(tmp_path / "m.onnx", nodes, [given], [out], [weight])
    session = ort.session(path, error=ExportError, what="the graph of m")
    x = np.array([[1, 2, 3.015625], [1, 1, 1]], np.float32)
    (found,) = ort.run(session, {"x": x}, error=ExportError, what="m").values()
    assert found.dtype == np.float32, "numpy has no bfloat16"
    wanted = {"FLOAT": 3.0078125, "BFLOAT16": 3.0}[border]  # what it returns is rounded
    assert found.tolist() == [[wanted] * 3, [1.5] * 3]


@pytest.mark.parametrize("operator", ["Relu", "Clip"])
def test_no_activation_is_lost_before_it_is_quantized_to_fp8(tmp_path: Path, operator: str) -> None:
    helper, low = onnx.helper, onnx.TensorProto.FLOAT8E4M3FN
    weights = [
        helper.make_tensor("scale", onnx.TensorProto.FLOAT, [], [0.125]),
        helper.make_tensor("zero", low, [], [0.0]),
        helper.make_tensor("least", onnx.TensorProto.FLOAT, [], [0.0]),
    ]
    nodes = [
        helper.make_node(operator, ["x", *(["least"] if operator == "Clip" else [])], ["a"]),
        helper.make_node("QuantizeLinear", ["a", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    given, out = (tiny_onnx.value(name, [4], onnx.TensorProto.FLOAT) for name in "xy")
    graph = helper.make_graph(nodes, "g", [given], [out], weights)
    opset = helper.make_opsetid("", 20)
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
    session = ort.session(path, error=ExportError, what="m")
    feeds = {"x": np.array([-1, 0.5, 2, 9], np.float32)}
    (found,) = ort.run(session, feeds, error=ExportError, what="m").values()
    assert found.tolist() == [0, 0.5, 2, 9]


@pytest.mark.parametrize("opset", [22, 25])
def test_an_operator_that_only_got_bfloat16_runs_as_before(tmp_path: Path, opset: int) -> None:
    """ONNX Runtime 1.32 has RoiAlign of opset 16, and none of opset 22, which computes the same."""
    attributes = {"output_height": 2, "output_width": 2}
    kind = onnx.TensorProto.FLOAT
    inputs = ["x", "rois", "of"]
    node = onnx.helper.make_node("RoiAlign", inputs, ["y"], "crop", **attributes)
    given = [
        tiny_onnx.value("x", [1, 1, 4, 4], kind),
        tiny_onnx.value("rois", [1, 4], kind),
        tiny_onnx.value("of", [1], onnx.TensorProto.INT64),
    ]
    found: list[np.ndarray] = []
    feeds = {
        "x": np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4),
        "rois": np.array([[0, 0, 3, 3]], np.float32),
        "of": np.array([0]),
    }
    for number in (21, opset):
        made = tiny_onnx.value("y", [1, 1, 2, 2], kind)
        path = tiny_onnx.save(tmp_path / f"{number}.onnx", [node], given, [made], [])
        model = onnx.load(path)
        model.opset_import[0].version = number
        onnx.save(model, path)
        session = ort.session(path, error=ExportError, what="the graph")
        found += ort.run(session, feeds, error=ExportError, what="m").values()
    np.testing.assert_array_equal(*found)


def test_a_worker_with_the_one_for_gpus_needs_no_other(installed: Installed) -> None:
    installed(onnxruntime_gpu="1.31.1")
    assert ort.version() == "onnxruntime 1.31.1"
    installed()
    with pytest.raises(HostError, match="not installed"):
        ort.version()


CRASHES = """
import sys
import onnx
from pathlib import Path
from enginefarm.errors import ExportError
from enginefarm.graph.model import ort
print(ort.session(Path(sys.argv[1]), error=ExportError, what="test").get_outputs()[0].shape)
"""


def test_fp16_whose_batch_axis_is_moved_does_not_crash(tmp_path: Path) -> None:
    """In a process of its own: ONNX Runtime's MatmulTransposeFusion ends it with SIGSEGV."""
    made = parser.parse_model("""<ir_version: 10, opset_import: ["" : 20]>
        agraph (float16[n, 3, 4] x) => (float16[3, n, 5] y) {
            t = Transpose <perm = [1, 0, 2]> (x)
            y = MatMul (t, w)
        }""")
    made.graph.initializer.append(numpy_helper.from_array(np.ones((4, 5), np.float16), "w"))
    onnx.save(made, tmp_path / "m.onnx")
    command = [sys.executable, "-c", CRASHES, str(tmp_path / "m.onnx")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "[3, 'n', 5]\n"), ended.stderr
