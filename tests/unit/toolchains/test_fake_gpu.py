"""The fake TensorRT of tests/fake_gpu has nothing that the real one has not."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

FAKE = Path(__file__).parents[2] / "fake_gpu" / "tensorrt"


def public_names() -> dict[str, set[str]]:
    """Class -> public methods and attributes, of the fake."""
    found: dict[str, set[str]] = {}
    for file in ("names", "loading", "building"):
        tree = ast.parse((FAKE / f"{file}.py").read_text("utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name] = {name for name in _names(node) if not name.startswith("_")}
    return found


def _names(node: ast.ClassDef) -> set[str]:
    found: set[str] = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef):
            found.add(inner.name)
        elif isinstance(inner, ast.Attribute) and ast.unparse(inner) == f"self.{inner.attr}":
            found.add(inner.attr)
    found |= {
        target.id
        for statement in node.body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    return found


@pytest.mark.parametrize("name", sorted(public_names()))
def test_every_name_is_a_real_one(name: str, api: dict[str, dict[str, set[str]]]) -> None:
    real = api["10"]
    assert name in real
    # load_library is the plugin registry's: the fake has one object for both.
    assert public_names()[name] - real[name] - {"load_library"} == set()
