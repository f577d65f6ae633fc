"""pycuda, as far as enginefarm calls it, on a machine without CUDA."""
