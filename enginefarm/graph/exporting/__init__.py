"""From a model to a slim ONNX graph, checked at every corner of its profiles."""
