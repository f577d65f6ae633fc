"""A torch.export program in a .pt2 archive.

The archive is copied member by member into one that torch can load without running code.
torch.export.load unpickles weights, constants and objects, evaluates shape expressions and
guards as Python, and writes names of values into source that it executes. So only members of
known paths pass, JSON is parsed and written again, each string in it must look like what
torch writes there, and pickles must load with `weights_only`. What torch reads is the copy:
it may read a zip file in another way than Python does.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from enginefarm.documents.sources import ExportedProgramSource
from enginefarm.errors import NO_SPACE, SourceError, UnsafeCheckpointError
from enginefarm.graph.sources import Loaded, Local
from enginefarm.graph.sources.local_file import file_digest, local_file
from enginefarm.graph.sources.shape_expression import is_arithmetic
from enginefarm.recipes import import_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from enginefarm.documents.recipe import TensorSpec

FIX = "save it again with torch.export.save, from a module of plain tensors"
JSON_LIMIT_BYTES = 1 << 28
NAME = re.compile(r"[\w.\-+:/]*")
"""Names of values, parameters, operators and types: nothing that Python would execute."""
TRACE = re.compile(r"[\w.\-+:/,;<>$ \[\]'()@]*")
"""Notes about where a node came from; torch looks names up in them, and runs nothing."""
TARGET = re.compile(r"torch\.ops\.\w+\.\w+(\.\w+)?|_operator\.\w+|math\.\w+|torch\.sym_\w+")
FORBIDDEN_OPERATORS = re.compile(r"torch\.ops\.\w+\.(from_file|_?save|load\w*)(\.|$)")
CONTAINERS = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}


class ExportedProgramFile(Local):
    def fingerprint(self, source: ExportedProgramSource, root: Path) -> str:
        return import_path.digest({"program": file_digest(source.path, root, field="source.path")})

    def load(
        self,
        source: ExportedProgramSource,
        root: Path,
        work_dir: Path,
        inputs: Sequence[TensorSpec] = (),
    ) -> Loaded:
        import torch

        file = local_file(source.path, root, field="source.path")
        program = checked_copy(file, work_dir / "program.pt2")
        try:
            loaded = torch.export.load(program)
        except Exception as error:
            raise SourceError(
                f"source.path: {source.path} is not a program that torch.export can load",
                why=f"{type(error).__name__}: {error}"[:400],
                fix="save it with torch.export.save, with a torch no newer than this one "
                f"({torch.__version__})",
            ) from error
        for place, output in enumerate(loaded.graph_signature.user_outputs):
            if output is not None and not isinstance(output, str):  # the value, and not its name
                raise SourceError(
                    f"source.path: {source.path}: output {place} of the program is {output!r}",
                    why="an engine returns tensors, and this value is the same for every input",
                    fix="export a forward that returns tensors only",
                )
        return Loaded(loaded)


def checked_copy(file: Path, dest: Path) -> Path:
    """Writes what may be loaded to `dest`.

    Raises: UnsafeCheckpointError, naming the member; SourceError for what is not an archive of
    torch.export.
    """
    try:
        with zipfile.ZipFile(file) as archive, zipfile.ZipFile(dest, "w") as copy:
            for member, path in _members(archive, file.name):
                copying = next((how for pattern, how in MEMBERS if pattern.fullmatch(path)), None)
                if copying is None:
                    raise _refused(
                        file.name, f"it holds {path!r}", "torch.export writes no such file"
                    )
                with (
                    archive.open(member) as source,
                    copy.open(zipfile.ZipInfo(f"program/{path}"), "w", force_zip64=True) as target,
                ):
                    copying(source, target, f"{file.name}: {path}")
    except (
        zipfile.BadZipFile,
        RuntimeError,
        EOFError,
        ArithmeticError,
        ValueError,
        OSError,
    ) as error:
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            raise
        raise SourceError(
            f"source.path: {file.name} is not a .pt2 file, or was cut short",
            why=str(error),
            fix=FIX,
        ) from error
    return dest


def _members(archive: zipfile.ZipFile, file: str) -> Iterator[tuple[zipfile.ZipInfo, str]]:
    """Each member with its path in the archive's one folder."""
    tops: set[str] = set()
    paths: set[str] = set()
    for member in archive.infolist():
        top, _, path = member.filename.partition("/")
        tops.add(top)
        if len(tops) > 1 or path in paths:
            raise _refused(file, f"{member.filename!r} occurs twice, or is in another folder", "")
        paths.add(path)
        if member.flag_bits & 1:
            raise SourceError(
                f"source.path: {file}: {path} is encrypted",
                fix="save it again without a password",
            )
        if member.compress_type != zipfile.ZIP_STORED:
            raise _refused(file, f"{path} is compressed", "torch.export compresses nothing")
        yield member, path


def _raw(source: IO[bytes], target: IO[bytes], where: str) -> None:
    shutil.copyfileobj(source, target, 1 << 20)


def _pickle(source: IO[bytes], target: IO[bytes], where: str) -> None:
    import torch

    data = source.read()
    try:
        if data:
            torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        why = str(error).split("\n")[0][:200]
        raise _refused(where, "it does not load with weights_only", why) from None
    target.write(data)


def _config(source: IO[bytes], target: IO[bytes], where: str) -> None:
    """Where each weight or constant is: never in a pickle."""
    document = _json(source, where)
    entries = document.get("config")
    if not isinstance(entries, dict):
        raise _refused(where, "it has no `config`", "")
    for name, entry in cast("dict[str, Any]", entries).items():
        if not isinstance(entry, dict) or cast("dict[str, Any]", entry).get("use_pickle"):
            raise _refused(where, f"{name!r} is a pickled object", "loading it would run code")
        path = cast("dict[str, Any]", entry).get("path_name")
        if not re.fullmatch(r"(weight|tensor)_\d+", str(path)):
            raise _refused(where, f"{name!r} is in {path!r}", "it is not a plain tensor")
    _check(document, where)
    target.write(json.dumps(document).encode())


def _model(source: IO[bytes], target: IO[bytes], where: str) -> None:
    """The graph. Guards are left out: torch would execute them, and profiles are checked here."""
    document = _json(source, where)
    document["guards_code"] = []
    _check(document, where)
    target.write(json.dumps(document).encode())


Copying = Callable[[IO[bytes], IO[bytes], str], None]

MEMBERS: tuple[tuple[re.Pattern[str], Copying], ...] = tuple(
    (re.compile(pattern), copying)
    for pattern, copying in (
        (r"archive_format|archive_version|byteorder|version|\.format_version", _raw),
        (r"\.storage_alignment|\.data/(version|serialization_id)", _raw),
        (r"extra/[\w.\-/]+", _raw),
        (r"data/weights/weight_\d+|data/constants/tensor_\d+", _raw),
        (r"data/weights/model_weights_config\.json", _config),
        (r"data/constants/model_constants_config\.json", _config),
        (r"models/model\.json", _model),
        (r"data/(weights|constants|sample_inputs)/model\.pt", _pickle),
    )
)
"""Path in the archive -> how it is copied."""


def _json(source: IO[bytes], where: str) -> dict[str, Any]:
    data = source.read(JSON_LIMIT_BYTES + 1)
    if len(data) > JSON_LIMIT_BYTES:
        raise _refused(where, f"it has more than {JSON_LIMIT_BYTES} bytes", "")
    try:
        document: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _refused(where, "it is not JSON", f"{type(error).__name__}: {error}"[:200]) from None
    if not isinstance(document, dict):
        raise _refused(where, "it is not a JSON object", "")
    return cast("dict[str, Any]", document)


def _check(value: Any, where: str, key: str = "") -> None:
    """Every string of the document, by the key that it stands under. Changes traces only."""
    if isinstance(value, dict):
        for name, inner in cast("dict[str, Any]", value).items():
            if not NAME.fullmatch(name):
                raise _refused(where, f"{name[:80]!r} is not a name", "")
            if name == "stack_trace":
                value[name] = ""
                continue
            _check(inner, where, "metadata" if key == "metadata" else name)
    elif isinstance(value, list):
        for inner in cast("list[Any]", value):
            _check(inner, where, key)
    elif isinstance(value, str) and key != "as_string":
        CHECKS.get(key, partial(_name, NAME))(value, where)


def _name(allowed: re.Pattern[str], text: str, where: str) -> None:
    if not allowed.fullmatch(text):
        raise _refused(where, f"{text[:80]!r} is not a name", "it could be executed as Python")


def _target(text: str, where: str) -> None:
    if not TARGET.fullmatch(text) or FORBIDDEN_OPERATORS.match(text):
        raise _refused(where, f"{text[:80]!r} is not an operator of a graph", "")


def _tree(text: str, where: str) -> None:
    """How inputs are nested: plain containers. Others name modules that would be imported."""
    try:
        waiting: list[Any] = [json.loads(text)]
    except (ValueError, RecursionError):
        raise _refused(where, f"{text[:80]!r} is not a nesting of inputs", "") from None
    for value in waiting:
        if isinstance(value, list):
            waiting += cast("list[Any]", value)
        elif isinstance(value, dict):
            fields = cast("dict[str, Any]", value)
            if fields.get("type") not in CONTAINERS:
                raise _refused(where, f"inputs are nested in {fields.get('type')!r}", "")
            waiting += [fields.get("children_spec")]


def _expression(text: str, where: str) -> None:
    if not is_arithmetic(text):
        raise _refused(
            where,
            "a shape expression is not arithmetic, or is too large",
            f"{text[:80]!r} would be evaluated as Python",
        )


CHECKS: dict[str, Callable[[str, str], None]] = {
    "expr_str": _expression,
    "in_spec": _tree,
    "out_spec": _tree,
    "target": _target,
    "metadata": partial(_name, TRACE),
}
"""Key in the document -> what its strings have to pass; under any other key, a name."""


def _refused(where: str, what: str, why: str) -> UnsafeCheckpointError:
    return UnsafeCheckpointError(f"source.path: {where}: refused, {what}", why=why, fix=FIX)
