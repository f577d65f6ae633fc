"""ONNX on the CPU: exported, slimmed, calibrated, converted, and compared with the model."""
