"""Programs that benchmarks and GPU tests run in a process of their own import what there is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[3]


def imports() -> Iterator[tuple[str, str, str]]:
    """The file, the module and the name of each import of ours in a string that is a program."""
    for path in (*ROOT.glob("benchmarks/*.py"), *ROOT.glob("tests/gpu/*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and "import" in str(node.value):
                for module, name in of_program(str(node.value)):
                    yield path.name, module, name


def of_program(text: str) -> Iterator[tuple[str, str]]:
    try:
        program = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(program):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("enginefarm"):
            yield from ((str(node.module), alias.name) for alias in node.names)


def is_there(module: str, name: str) -> bool:
    try:
        import_module(f"{module}.{name}")
    except ModuleNotFoundError:
        return hasattr(import_module(module), name)
    return True


def test_what_programs_import_is_there() -> None:
    """One test, because to find the programs takes longer: each process that collects would."""
    found = set(imports())
    assert found
    assert [one for one in sorted(found) if not is_there(*one[1:])] == []
