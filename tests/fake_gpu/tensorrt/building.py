"""From an ONNX file to a plan."""

from __future__ import annotations

import base64
import itertools
import json
from pathlib import Path
from typing import Any

import onnx

from .names import BuilderFlag, DataType, ILogger

BUILDS = itertools.count()
SECONDS = (0.02, 0.0, 0.01)
"""How long engines of the first, second, third … build take: tactics are noisy."""


class ITimingCache:
    """Lines of timings, of this version only."""

    def __init__(self, data: bytes) -> None:
        self._lines = set(filter(None, data.split(b"\n")))

    def combine(self, other: ITimingCache, ignore_mismatch: bool) -> bool:
        self._lines |= other._lines
        return True

    def serialize(self) -> bytes:
        return b"\n".join(sorted(self._lines))


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, list[Any]] = {}

    def set_shape(self, name: str, low: Any, opt: Any, high: Any) -> None:
        if len({len(low), len(opt), len(high)}) > 1:
            raise ValueError("ranks differ")
        self._shapes[name] = [tuple(low), tuple(opt), tuple(high)]

    set_shape_input = set_shape


class _Tensor:
    def __init__(self, info: Any) -> None:
        kind = info.type.tensor_type
        self.name = info.name
        self.dtype = DataType(kind.elem_type)
        self.shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
        self.is_shape_tensor = False


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self._flags = flags
        self._model: Any = onnx.ModelProto()

    @property
    def num_layers(self) -> int:
        return len(self._model.graph.node)

    @property
    def num_inputs(self) -> int:
        return len(self._model.graph.input)

    @property
    def num_outputs(self) -> int:
        return len(self._model.graph.output)

    def get_input(self, index: int) -> _Tensor:
        return _Tensor(self._model.graph.input[index])

    def get_output(self, index: int) -> _Tensor:
        return _Tensor(self._model.graph.output[index])


class _ParserError:
    def __init__(self, operator: str) -> None:
        self._operator = operator

    def node_operator(self) -> str:
        return self._operator

    def node_name(self) -> str:
        return f"{self._operator}_0"

    def code(self) -> str:
        return "ErrorCode.UNSUPPORTED_NODE"

    def desc(self) -> str:
        return f"No importer registered for op: {self._operator}"


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = network
        self._errors: list[_ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> _ParserError:
        return self._errors[index]

    def parse_from_file(self, path: str) -> bool:
        if not Path(path).read_bytes():
            return True  # as the real one does
        self._network._model = onnx.load(path)
        unknown = _faults(self._network._model).get("parse")
        self._errors = [_ParserError(unknown)] if unknown else []
        return not unknown


class IBuilderConfig:
    def __init__(self) -> None:
        self._flags: set[BuilderFlag] = {BuilderFlag.TF32}  # as the real ones start
        self._profiles: list[IOptimizationProfile] = []
        self._pools: dict[str, int] = {}
        self._tactics: int | None = None
        self._cache: ITimingCache | None = None
        self.builder_optimization_level = 3
        self.hardware_compatibility_level: Any = None
        self.profiling_verbosity: Any = None
        self.progress_monitor: Any = None
        self.plugins_to_serialize: list[str] = []

    def set_flag(self, flag: BuilderFlag) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._flags.discard(flag)

    def get_flag(self, flag: BuilderFlag) -> bool:
        return flag in self._flags

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self._pools[pool.name] = size

    def set_tactic_sources(self, mask: int) -> bool:
        self._tactics = mask
        return mask != 0

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        for low, opt, high in profile._shapes.values():
            if not all(a <= b <= c for a, b, c in zip(low, opt, high, strict=True)):
                return -1
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, data: bytes) -> ITimingCache | None:
        return None if b"another device" in data else ITimingCache(data)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def get_plugin_registry(self) -> Any:
        return self

    def load_library(self, library: str) -> object:
        self._logger.log(ILogger.Severity.INFO, f"loaded {library}")
        return library

    def create_network(self, flags: int) -> INetworkDefinition:
        return INetworkDefinition(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> bytes | None:
        faults = _faults(network._model)
        if "build" in faults:
            if faults["build"]:
                self._logger.log(ILogger.Severity.ERROR, faults["build"])
            return None
        _progress(config.progress_monitor, network.num_layers)
        asked: dict[str, Any] = {
            "network_flags": network._flags,
            "flags": sorted(flag.name for flag in config._flags),
            "level": config.builder_optimization_level,
            "compatibility": getattr(config.hardware_compatibility_level, "name", None),
            "pools": config._pools,
            "tactics": config._tactics,
            "plugins": config.plugins_to_serialize,
            "cached": sorted(line.decode() for line in getattr(config._cache, "_lines", ())),
            "seconds": SECONDS[next(BUILDS) % len(SECONDS)],
        }
        if config._cache is not None:
            for node in network._model.graph.node:
                config._cache._lines.add(node.name.encode())
        plan = {
            "onnx": base64.b64encode(network._model.SerializeToString()).decode(),
            "profiles": [profile._shapes for profile in config._profiles],
            "faults": faults,
            "asked": asked,
        }
        return json.dumps(plan).encode()


def _faults(model: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def _progress(monitor: Any, layers: int) -> None:
    monitor.phase_start("Building Engine", None, layers)
    for index in range(layers):
        monitor.step_complete("Building Engine", index)
    monitor.phase_finish("Building Engine")
