"""Two timing caches of one device into one, by TensorRT itself, in a process of its own.

python -m enginefarm.toolchains.combine_caches STORED FRESH OUT
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from enginefarm.child.process import child_environment
from enginefarm.run.trt import Messages, make_logger
from enginefarm.toolchains.tensorrt import load, read_timing_cache


def combine(stored: bytes, fresh: bytes) -> bytes | None:
    """Both in one; None when TensorRT refuses (another device or version), or fails."""
    with tempfile.TemporaryDirectory(prefix="enginefarm-") as name:
        folder = Path(name)
        first, second, out = folder / "stored", folder / "fresh", folder / "out"
        first.write_bytes(stored)
        second.write_bytes(fresh)
        done = subprocess.run(
            [
                *(sys.executable, "-P", "-m", "enginefarm.toolchains.combine_caches"),
                *(str(first), str(second), str(out)),
            ],
            env=child_environment(folder),
            capture_output=True,
            timeout=300,
            check=False,
        )
        return out.read_bytes() if done.returncode == 0 and out.is_file() else None


def main(first: str, second: str, out: str) -> int:
    trt, messages = load(), Messages()
    builder = trt.Builder(make_logger(trt, messages))
    config = builder.create_builder_config()
    cache = read_timing_cache(config, Path(first).read_bytes(), messages)
    other = read_timing_cache(config, Path(second).read_bytes(), messages)
    if cache is None or other is None or not cache.combine(other, False):
        return 1
    Path(out).write_bytes(memoryview(cache.serialize()))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
