"""enginefarm: verified, benchmarked TensorRT engines for every GPU of a fleet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from enginefarm.names import loaded

if TYPE_CHECKING:
    from enginefarm.pulling.pull import pull
    from enginefarm.tables.tables import benchmarks

__version__ = "0.1.0"

__all__ = ["__version__", "benchmarks", "pull"]

# Name -> where it is. Loaded at first use, so that `import enginefarm` costs nothing.
_LAZY: dict[str, str] = {
    "benchmarks": "enginefarm.tables.tables:benchmarks",
    "pull": "enginefarm.pulling.pull:pull",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return loaded(_LAZY[name])
