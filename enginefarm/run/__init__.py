"""Runs an engine or a model, on the GPU or in ONNX Runtime."""
