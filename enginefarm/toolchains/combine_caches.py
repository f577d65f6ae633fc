"""Two timing caches of one device into one, by TensorRT itself, in a separate process."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from enginefarm.child.call import Child, Limits
from enginefarm.errors import BuildCancelled, BuildError, EnginefarmError
from enginefarm.run.trt import Messages, create, make_logger
from enginefarm.toolchains.tensorrt import load, read_timing_cache

LIMIT_S = 300


def combine(stored: bytes, fresh: bytes) -> bytes | None:
    """Both in one; None when TensorRT refuses (another device or version), or fails."""
    with tempfile.TemporaryDirectory(prefix="enginefarm-") as name:
        folder = Path(name)
        first, second, out = folder / "stored", folder / "fresh", folder / "out"
        first.write_bytes(stored)
        second.write_bytes(fresh)
        child = Child("timing caches", error=BuildError, folder=folder, limits=Limits(LIMIT_S))
        try:
            child.call(f"{__name__}:combine_here", json.dumps([*map(str, (first, second, out))]))
        except BuildCancelled:
            raise
        except EnginefarmError:
            return None
        return out.read_bytes()


def combine_here(request: str) -> str:
    """The child's part. Raises: BuildError when TensorRT refuses them."""
    first, second, out = map(Path, json.loads(request))
    trt, messages = load(), Messages()
    builder = create(
        "TensorRT's builder", trt.Builder, make_logger(trt, messages), messages=messages
    )
    config = builder.create_builder_config()
    cache = read_timing_cache(config, first.read_bytes(), messages)
    other = read_timing_cache(config, second.read_bytes(), messages)
    if cache is None or other is None or not cache.combine(other, False):
        raise BuildError("TensorRT does not combine these timing caches")
    out.write_bytes(memoryview(cache.serialize()))
    return ""
