"""An engine or a model made to run, on the GPU or through ONNX Runtime."""
