"""enginefarm: verified, benchmarked TensorRT engines for every GPU of a fleet."""

from __future__ import annotations

__version__ = "0.1.0"
