"""A torch.export program in a .pt2 file."""

from __future__ import annotations

import ast
import io
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from enginefarm.documents.recipe import ExportedProgramSource
from enginefarm.errors import SourceError, UnsafeCheckpointError
from enginefarm.graph.sources.local_file import file_digest, local_file
from enginefarm.recipes import import_path

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FIX = "save it again with torch.export.save, from a module of plain tensors"
EXPRESSION = re.compile(rb'"expr_str"\s*:\s*"((?:[^"\\]|\\.)*)"')


class ExportedProgramFile:
    def fingerprint(self, source: ExportedProgramSource, root: Path) -> str:
        return import_path.digest({"program": file_digest(source.path, root, field="source.path")})

    def load(self, source: ExportedProgramSource, root: Path, work_dir: Path) -> ExportedProgram:
        import torch

        file = local_file(source.path, root, field="source.path")
        refuse_code(file)
        try:
            return torch.export.load(file)
        except Exception as error:
            raise SourceError(
                f"source.path: {source.path}: not a program that torch.export can load",
                why=f"{type(error).__name__}: {error}"[:400],
                fix="save it with torch.export.save, with a torch no newer than this one "
                f"({torch.__version__})",
            ) from error


def refuse_code(file: Path) -> None:
    """Looks into the archive for what torch.export.load would execute.

    It unpickles opaque objects, and falls back to full unpickling for weights, constants and
    sample inputs; sympy evaluates the shape expressions.

    Raises: UnsafeCheckpointError, SourceError.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                _refuse_member(archive, name, file.name)
    except zipfile.BadZipFile as error:
        raise SourceError(
            f"source.path: {file.name}: not a .pt2 file, or cut short", why=str(error), fix=FIX
        ) from error


def _refuse_member(archive: zipfile.ZipFile, name: str, file: str) -> None:
    import torch

    base = name.rpartition("/")[2]
    if base.startswith(("opaque_obj", "custom_obj")):
        raise UnsafeCheckpointError(
            f"source.path: {file}: refused, it holds a pickled object ({name})",
            why="loading it would run code",
            fix=FIX,
        )
    if base.endswith(".json"):
        for text in EXPRESSION.findall(archive.read(name)):
            expression = text.decode("utf-8", "replace")
            if not _is_arithmetic(expression):
                raise UnsafeCheckpointError(
                    f"source.path: {file}: refused, a shape expression is not arithmetic",
                    why=f"{expression[:80]!r} would be evaluated as Python",
                    fix=FIX,
                )
        return
    with archive.open(name) as stream:
        head = stream.read(4)
    if not (base.endswith(".pt") or head == b"PK\x03\x04"):
        return  # raw tensor bytes, version numbers and the like
    data = archive.read(name)
    try:
        if data:
            torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        raise UnsafeCheckpointError(
            f"source.path: {file}: refused, {name} does not load with weights_only",
            why=str(error).split("\n")[0][:200],
            fix=FIX,
        ) from None


def _is_arithmetic(expression: str) -> bool:
    """True for what torch writes: `Add(Integer(2), Symbol('s0', positive=True))`.

    Strings are let through as the name of a Symbol only: sympy evaluates any other again.
    """
    try:
        tree = ast.parse(expression, mode="eval").body
    except (SyntaxError, ValueError, RecursionError):
        return False
    return _is_term(tree)


def _is_term(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float)
    if isinstance(node, ast.Name):
        return "__" not in node.id
    if isinstance(node, ast.UnaryOp):
        return _is_term(node.operand)
    if isinstance(node, ast.BinOp):
        return _is_term(node.left) and _is_term(node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if "__" in node.func.id or not node.func.id[0].isupper():
            return False
        arguments = list(node.args)
        if node.func.id == "Symbol":
            first = arguments.pop(0) if arguments else None
            if not (
                isinstance(first, ast.Constant)
                and isinstance(first.value, str)
                and first.value.isidentifier()
            ):
                return False
        return all(_is_term(item) for item in [*arguments, *(k.value for k in node.keywords)])
    return False
