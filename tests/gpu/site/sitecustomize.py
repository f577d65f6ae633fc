"""On PYTHONPATH or beside the packages of the GPU machine's Python: every process of the farm
there, builders and workers too, finds TensorRT 8.6 where 10 and 11 would be."""

from enginefarm.host import runtimes
from enginefarm.names import TOOLCHAINS

TOOLCHAINS["tensorrt"] = TOOLCHAINS["tensorrt"]._replace(code="trt86_toolchain:TensorRT86")
TOOLCHAINS["ort-trt"] = TOOLCHAINS["ort-trt"]._replace(code="ort_trt86_toolchain:OrtTensorRT86")
runtimes.ORT_TENSORRT_LIBRARIES["tensorrt"] = "11"
