"""Whether a graph computes what the model does: the FP32 reference, and the figures against it."""
