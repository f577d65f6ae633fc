"""Which ONNX Runtime is here, in whichever distribution it came."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest
import tiny_onnx

from enginefarm.errors import ExportError, HostError
from enginefarm.graph import ort

Installed = Callable[..., None]


def test_it_is_the_one_that_is_imported() -> None:
    assert ort.version() == f"onnxruntime {onnxruntime.__version__}"


def test_a_graph_in_bfloat16_is_called_one(tmp_path: Path) -> None:
    def cast(source: str, made: str, to: int) -> onnx.NodeProto:
        return onnx.helper.make_node("Cast", [source], [made], f"cast_{made}", to=to)

    low = onnx.TensorProto.BFLOAT16
    nodes = [cast("x", "a", low), onnx.helper.make_node("MatMul", ["a", "w"], ["b"], "linear")]
    nodes.append(cast("b", "y", onnx.TensorProto.FLOAT))
    weight = onnx.helper.make_tensor("w", low, [3, 3], [0.5] * 9)
    given, out = (tiny_onnx.value(name, [2, 3], onnx.TensorProto.FLOAT) for name in "xy")
    path = tiny_onnx.save(tmp_path / "m.onnx", nodes, [given], [out], [weight])
    with pytest.raises(ExportError, match="it computes in bfloat16") as caught:
        ort.session(path, error=ExportError, what="the graph of m")
    assert ".float()" in caught.value.fix


def test_a_worker_with_the_one_for_gpus_needs_no_other(installed: Installed) -> None:
    installed(onnxruntime_gpu="1.31.1")
    assert ort.version() == "onnxruntime 1.31.1"
    installed()
    with pytest.raises(HostError, match="not installed"):
        ort.version()
