"""An ONNX model in memory: its nodes, names, types and bytes, and how ONNX Runtime runs it."""
