"""Which names of the native API our code touches: read from the code itself.

A variable's name says what it holds (`config` is an IBuilderConfig everywhere): HOLDS. New
code is covered as soon as it is written; a new variable needs a line here.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

HOLDS: dict[str, str] = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "made": "IOptimizationProfile",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "first": "ParserError",
    "error": "ParserError",
    "refitter": "Refitter",
    "runtime": "Runtime",
    "_runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
}

FILES: dict[str, tuple[str, ...]] = {
    "toolchains/builder_api.py": ("builder", "config", "network", "made"),
    "toolchains/built_plan.py": ("runtime", "engine"),
    "toolchains/parsing.py": ("network", "parser", "first", "error"),
    "toolchains/tensorrt.py": ("builder", "config", "network", "parser", "cache", "inspector"),
    "toolchains/tensorrt_rtx.py": ("builder", "config", "network", "parser"),
    "run/refit.py": ("runtime", "engine", "refitter"),
    "run/trt.py": (),
    "run/engine.py": ("_runtime", "engine", "inspector"),
    "run/session.py": ("context",),
    "bench/layer_times.py": ("context",),
    "run/buffers.py": (),
}
"""Our files and the native variables in each (`profile` is a recipe's in most of them)."""

OURS = {"session", "stream", "errno", "what", "why", "fix"}
"""Attributes of our own objects that share a variable's name with a native one."""


def names_used(root: Path, file: str) -> dict[str, set[str]]:
    """Class or enum -> attributes; '' -> names of the module itself."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    tree = ast.parse((root / file).read_text("utf-8"))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        receiver = _last(node.value)
        if isinstance(node.value, ast.Attribute) and _last(node.value.value) == "spec":
            continue  # spec.builder is the recipe's options
        if receiver == "trt":
            found[""].add(node.attr)
        elif isinstance(node.value, ast.Attribute) and _last(node.value.value) == "trt":
            found[node.value.attr].add(node.attr)
        elif receiver in FILES[file] and node.attr not in OURS:
            found[HOLDS[receiver]].add(node.attr)
    return dict(found)


def _last(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""
