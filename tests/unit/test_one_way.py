"""One class of a name, one place that tells kinds apart, one way to start a process."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

from enginefarm.documents.gpus import table
from enginefarm.documents.sources import SOURCES
from enginefarm.names import PRECISIONS, RUNTIMES, TOOLCHAINS

ROOT = Path(__file__).parents[2]
FILES = [path for top in ("enginefarm", "flows", "tasks") for path in (ROOT / top).rglob("*.py")]
KINDS = {*PRECISIONS, *RUNTIMES, *TOOLCHAINS, *SOURCES, *table()}

STARTERS = {
    "enginefarm/child/process.py": "the protocol (decision 0150)",
    "enginefarm/child/fork.py": "a fork inside a child of the protocol, whose limits count it",
    "enginefarm/toolchains/trtexec.py": "trtexec, inside a child of the protocol",
    "enginefarm/cli/api.py": "the command `enginefarm build`, which has children of its own",
    "enginefarm/store/embedded.py": "the embedded store, which outlives commands (decision 0010)",
    "enginefarm/farm/up.py": "the farm's commands, which die with `enginefarm up`",
    "enginefarm/farm/server/private.py": "one command's Prefect API, which ends with its input",
    "enginefarm/farm/server/tables.py": "Prefect's migrations, when tables.sql is written anew",
    "enginefarm/farm/worker/run_process.py": "the runs of a worker (decision 0310)",
}
"""Every module that starts a process -> what it starts."""


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text("utf-8")))


def is_text(node: ast.AST) -> TypeGuard[ast.Constant]:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_a_class_has_a_name_of_its_own() -> None:
    where: dict[str, list[str]] = defaultdict(list)
    for path in FILES:
        for node in nodes(path):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where[node.name].append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in where.items() if len(paths) > 1} == {}


def test_what_differs_between_kinds_is_a_column_of_their_rows() -> None:
    """`precision == "int8"` would be a second place to change for whoever adds a kind."""
    found: list[str] = []
    for path in FILES:
        for node in nodes(path):
            if not isinstance(node, ast.Compare):
                continue
            inside = isinstance(node.ops[0], ast.In | ast.NotIn)  # the left side is the value
            sides = node.comparators if inside else [node.left, *node.comparators]
            texts = {one.value for side in sides for one in ast.walk(side) if is_text(one)}
            if texts & KINDS:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert found == []


def test_a_process_starts_in_one_way() -> None:
    """A new module that starts processes calls `enginefarm.child`, or says here why it does not."""
    starts = {"Popen", "run", "check_output", "check_call", "call", "fork", "get_context"}
    modules = {"subprocess", "os", "multiprocessing"}
    found = {
        str(path.relative_to(ROOT))
        for path in FILES
        for node in nodes(path)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in starts
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in modules
    }
    assert found == STARTERS.keys()
