"""What builds by TensorRT 8.6 on an H100 showed of the code that all versions share.

The stand-ins behave as that version was seen to: docs/measurements/2026-11-25-gpu-h100.md.
"""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from enginefarm.errors import BuildError, EngineRunError
from enginefarm.run import trt as trt_api
from enginefarm.run.engine import Engine
from enginefarm.toolchains import tensorrt
from enginefarm.toolchains.tensorrt import read_timing_cache, use_timing_cache


class Severity:
    INFO = 3


class ILogger:
    Severity = Severity


class Config:
    """Gives an empty cache for bytes that it cannot read, and says so in its log alone."""

    def __init__(self, messages: trt_api.Messages) -> None:
        self.messages = messages
        self.cache: Any = None

    def create_timing_cache(self, data: bytes) -> Any:
        if data and not data.startswith(b"ptrt"):
            self.messages.add("ERROR", "Magic tag does not match")
            self.messages.add("ERROR", "The timing cache will not be used!")
            data = b""
        return SimpleNamespace(data=data, serialize=lambda: data)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache
        return True


@pytest.fixture
def config() -> Config:
    return Config(trt_api.Messages(echo=False))


def test_a_logger_outlives_whoever_made_it() -> None:
    # TensorRT may write to the first logger of a process when its builder is gone.
    made = trt_api.make_logger(SimpleNamespace(ILogger=ILogger), trt_api.Messages(echo=False))
    alive = weakref.ref(made)
    del made
    gc.collect()
    assert alive() is not None


def test_a_cache_that_was_refused_in_the_log_is_not_called_used(
    config: Config, tmp_path: Path
) -> None:
    config.messages.errors.append("of before")
    (tmp_path / "bad").write_bytes(b"not a cache")
    assert not use_timing_cache(config, tmp_path / "bad", config.messages)
    assert config.cache.data == b""
    assert config.messages.errors == ["of before"]  # no cause of a failure to come
    (tmp_path / "good").write_bytes(b"ptrt...")
    assert use_timing_cache(config, tmp_path / "good", config.messages)
    assert config.cache.data == b"ptrt..."


def test_without_a_cache_an_empty_one_is_started(config: Config, tmp_path: Path) -> None:
    assert not use_timing_cache(config, None, config.messages)
    assert not use_timing_cache(config, tmp_path / "missing", config.messages)
    assert config.cache.data == b""


def test_a_refused_cache_is_combined_with_none(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_timing_cache(config, b"not a cache", config.messages) is None
    trt = SimpleNamespace(
        ILogger=ILogger,
        Builder=lambda logger: SimpleNamespace(create_builder_config=lambda: config),
    )
    monkeypatch.setattr(tensorrt, "load", lambda: trt)
    monkeypatch.setattr(tensorrt, "Messages", lambda: config.messages)
    (tmp_path / "a").write_bytes(b"ptrt a")
    (tmp_path / "b").write_bytes(b"not a cache")
    with pytest.raises(BuildError, match="does not combine"):
        tensorrt.combine_here(json.dumps([str(tmp_path / name) for name in ("a", "b", "out")]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("Error Code 1: Cuda Runtime (out of memory)", "too little free memory"),
        ("Error Code 2: OutOfMemory (no further information)", "too little free memory"),
        ("getPluginCreator could not find plugin: EfficientNMS_TRT version: 1", "a plugin"),
    ],
)
def test_what_a_runtime_logs_is_explained(said: str, meant: str) -> None:
    engine = object.__new__(Engine)
    engine.plan, engine.device_name = Path("x.plan"), "a GPU"
    engine.messages = trt_api.Messages(echo=False)
    engine.messages.add("ERROR", said)
    error = engine.failure("cannot be loaded")
    assert meant in error.why
    assert said in error.why
    assert isinstance(error, EngineRunError)
