"""Timing models so that the figures can be believed: `benchmark.py` puts the parts together.

figures.py      percentiles over all samples, and whether they are stable
gpu_state.py    clocks, power, temperature and throttling while measuring (NVML)
harness.py      settings, and the interleaved loop over contenders
contenders.py   TensorRT, ONNX Runtime and PyTorch behind one small Protocol
shapes.py       which shapes are measured, and feeds of those shapes
"""
