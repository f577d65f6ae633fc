"""ONNX on the CPU: export, slimming, calibration, conversion, and verification."""
