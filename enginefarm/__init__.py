"""enginefarm: verified, benchmarked TensorRT engines for every GPU of a fleet.

    import enginefarm

    engine = enginefarm.pull("minilm@production")        # the engine that fits this host
    engine.path, engine.manifest.tensors

    enginefarm.list("minilm", gpu="t4")                  # manifests in the store
    enginefarm.doctor(engine.path)                       # can this host run it?
    enginefarm.benchmarks(recipe="minilm", gpu="t4")     # a pandas.DataFrame
    enginefarm.build("model.onnx", gpus=["t4", "l4"])    # needs enginefarm[farm]

The store is the one that ENGINEFARM_STORE names, with the key of the standard AWS_* variables.
Everything that goes wrong on purpose is an enginefarm.errors.EnginefarmError, which says what,
why, and what to do next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from enginefarm.names import loaded

if TYPE_CHECKING:
    from enginefarm.cli.api import build, doctor, list
    from enginefarm.pulling.pull import pull
    from enginefarm.tables.tables import benchmarks

__version__ = "0.1.0"

__all__ = ["__version__", "benchmarks", "build", "doctor", "list", "pull"]

# Name -> where it is. Loaded at first use, so that `import enginefarm` costs nothing.
_LAZY: dict[str, str] = {
    "benchmarks": "enginefarm.tables.tables:benchmarks",
    "build": "enginefarm.cli.api:build",
    "doctor": "enginefarm.cli.api:doctor",
    "list": "enginefarm.cli.api:list",
    "pull": "enginefarm.pulling.pull:pull",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return loaded(_LAZY[name])


def __dir__() -> tuple[str, ...]:
    return tuple(sorted({*globals(), *_LAZY}))
