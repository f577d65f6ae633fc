"""What a toolchain lacks is known from the graph's operators."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import tiny_onnx

from enginefarm.documents.spec import GpuTarget
from enginefarm.graph import onnx_files
from enginefarm.toolchains.lacks import lacking

T4 = GpuTarget(label="t4", compute_capability="7.5")
L4 = GpuTarget(label="l4", compute_capability="8.9")


def test_an_fp32_matrix_product_on_7_5_is_named_and_other_rows_go_on(tmp_path: Path) -> None:
    path = tiny_onnx.float_gemm(tmp_path / "m.onnx")
    found = onnx_files.operators(onnx_files.graph_only(path))
    assert found == {"MatMul": "matmul0"}
    error = lacking("tensorrt-rtx", T4, "fp32", found)
    assert error is not None
    assert "node 'matmul0' (MatMul) cannot be built for t4 in fp32" in error.what
    assert error.fix
    assert lacking("tensorrt-rtx", T4, "fp16", found) is None
    assert lacking("tensorrt-rtx", L4, "fp32", found) is None
    assert lacking("tensorrt", T4, "fp32", found) is None


def test_an_operator_that_is_nowhere(tmp_path: Path) -> None:
    path = tiny_onnx.nonzero(tmp_path / "m.onnx")
    found = onnx_files.operators(onnx_files.graph_only(path))
    error = lacking("tensorrt-rtx", L4, "fp16", found)
    assert error is not None
    assert "'find_nonzero' (NonZero)" in error.what


@pytest.mark.parametrize(("dims", "name"), [([4, 3, 3, 3, 3], "Conv3d"), ([4, 3, 3, 3], "Conv")])
def test_a_convolution_over_three_dims_has_a_name_of_its_own(dims: list[int], name: str) -> None:
    size = 1
    for dim in dims:
        size *= dim
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, dims, [0.0] * size)
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], "conv")
    graph = onnx.helper.make_graph([node], "g", [], [], [weight])
    assert onnx_files.operators(onnx.helper.make_model(graph)) == {name: "conv"}
