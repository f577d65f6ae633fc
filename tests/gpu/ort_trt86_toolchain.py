"""ONNX Runtime 1.17.1 as the toolchain `ort-trt`: the last one whose provider loads TensorRT 8.6.

toolchains/ort_trt.py itself builds; only INT8 graphs are rewritten for 8.6 (trt86_graph.py).
Needs /opt/ort first on PYTHONPATH (unpack.sh). tests/gpu/site/sitecustomize.py enters it in the
table TOOLCHAINS, and the distribution of its TensorRT in runtimes.py.
"""

from __future__ import annotations

from trt86_graph import lifted

from enginefarm.toolchains import BuildOutput, BuildRequest
from enginefarm.toolchains.ort_trt import OrtTensorRT


class OrtTensorRT86(OrtTensorRT):
    def build(self, request: BuildRequest) -> BuildOutput:
        if request.spec.precision.name == "int8":
            onnx = lifted(request.onnx, request.work_dir / "lifted.onnx")
            request = request.model_copy(update={"onnx": onnx})
        return super().build(request)
