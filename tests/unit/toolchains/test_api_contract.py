"""Every native name that our code touches, against the real bindings of three TensorRTs."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

import enginefarm
from enginefarm.toolchains import builder_api, tensorrt, tensorrt_rtx
from tests.unit.toolchains.names_used import FILES, names_used

ROOT = Path(enginefarm.__file__).parent
BOTH = {
    "toolchains/builder_api.py",
    "toolchains/parsing.py",
    "run/trt.py",
    "run/engine.py",
    "run/session.py",
    "run/buffers.py",
}
NATIVE = {
    "toolchains/tensorrt.py",
    "run/refit.py",
}
USED_BY = {
    "10": {*BOTH, *NATIVE},
    "11": {*BOTH, *NATIVE},
    "rtx": {*BOTH, "toolchains/tensorrt_rtx.py"},
}

FLAGS = {"VERSION_COMPATIBLE", "SPARSE_WEIGHTS", "REFIT"}
BY_NAME: dict[str, dict[str, set[str]]] = {
    "10": {
        "BuilderFlag": FLAGS,
        "HardwareCompatibilityLevel": set(tensorrt.COMPATIBILITY.values()),
        "TacticSource": set(tensorrt.TACTIC_SOURCES[10]),
        "DataType": set(builder_api.DTYPES),
    },
    "11": {
        "BuilderFlag": FLAGS,
        "HardwareCompatibilityLevel": set(tensorrt.COMPATIBILITY.values()),
        "TacticSource": set(tensorrt.TACTIC_SOURCES[11]),
        "DataType": set(builder_api.DTYPES),
    },
    "rtx": {
        "BuilderFlag": {"VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME", "SPARSE_WEIGHTS"},
        "ComputeCapability": set(tensorrt_rtx.COMPUTE_CAPABILITIES.values()),
        "DataType": set(builder_api.DTYPES),
    },
}
"""Names that the code reaches through getattr, from the code's own tables."""


def wanted(key: str) -> dict[str, set[str]]:
    names: defaultdict[str, set[str]] = defaultdict(set)
    for file in sorted(USED_BY[key]):
        for owner, attributes in names_used(ROOT, file).items():
            names[owner] |= attributes
    for owner, attributes in BY_NAME[key].items():
        names[owner] |= attributes
    return dict(names)


def missing(api: dict[str, set[str]], names: dict[str, set[str]]) -> set[str]:
    lacking = {f"{name}" for name in names.get("", set()) if name not in api} - {
        "__version__",
        "__name__",
    }
    for owner, attributes in names.items():
        if owner and owner in api:
            lacking |= {f"{owner}.{name}" for name in attributes - api[owner]}
        elif owner:
            lacking.add(owner)
    return lacking


@pytest.mark.parametrize("key", ["10", "11", "rtx"])
def test_every_name_that_we_touch_is_there(key: str, api: dict[str, dict[str, set[str]]]) -> None:
    assert missing(api[key], wanted(key)) == set()


def test_the_check_sees_a_name_that_is_not_there(api: dict[str, dict[str, set[str]]]) -> None:
    names = {"": {"NoSuchClass"}, "IBuilderConfig": {"no_such_method"}, "NoEnum": {"A"}}
    assert missing(api["11"], names) == {
        "NoSuchClass",
        "IBuilderConfig.no_such_method",
        "NoEnum",
    }


@pytest.mark.parametrize("file", sorted(FILES))
def test_every_file_names_something_native(file: str) -> None:
    assert names_used(ROOT, file)


def test_the_code_names_what_it_is_known_to_use() -> None:
    names = wanted("10")
    assert {"set_timing_cache", "create_timing_cache", "progress_monitor"} <= names[
        "IBuilderConfig"
    ]
    assert {"execute_async_v3", "set_input_shape", "set_output_allocator"} <= (
        names["IExecutionContext"]
    )
    assert {"get_error", "num_errors", "parse_from_file"} <= names["OnnxParser"]
    assert "IOutputAllocator" in names[""]
