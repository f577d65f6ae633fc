"""An ONNX file: in the recipe's folder, or in S3."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from mmap import ACCESS_READ, mmap
from pathlib import Path

from enginefarm.child.call import Child, Limits
from enginefarm.documents.recipe import TensorSpec
from enginefarm.documents.sources import OnnxSource
from enginefarm.errors import SourceError
from enginefarm.graph.model import external_data, onnx_files, onnx_shapes, walk
from enginefarm.graph.sources import Loaded, s3_file
from enginefarm.graph.sources.local_file import file_digest, local_file
from enginefarm.recipes import import_path
from enginefarm.schema import Frozen

DOWNLOADED = "downloaded"
LOCATION = b"location"
PARSING_S = 120
STALE = "the file's shapes of inner values contradict its operators, and were left out"


class OnnxFile:
    def fingerprint(self, source: OnnxSource, root: Path) -> str:
        if source.path.startswith("s3://"):
            return import_path.digest(_versions(source.path))
        file = local_file(source.path, root, field="source.path")
        folder = Path(source.path).parent
        parts: dict[str, str] = {
            name: file_digest(str(folder / name), root, field="source.path")
            for name in _data_files(file)
            # load says what is missing, and what may not be read
            if external_data.may_hold(name, file.parent) and (file.parent / name).is_file()
        }
        parts[""] = file_digest(source.path, root, field="source.path")
        return import_path.digest(parts)

    def inputs(self, source: OnnxSource, root: Path) -> tuple[str, ...] | None:
        if source.path.startswith("s3://"):
            return None  # to be downloaded first
        file = local_file(source.path, root, field="source.path")
        return _ask(file, "inputs_here")

    def fetch(self, source: OnnxSource, work_dir: Path) -> None:
        if source.path.startswith("s3://"):
            _download(source.path, work_dir / DOWNLOADED)

    def load(
        self,
        source: OnnxSource,
        root: Path,
        work_dir: Path,
        inputs: Sequence[TensorSpec] = (),
    ) -> Loaded:
        """The model at opset 13 or later and in normal form, in work_dir."""
        from enginefarm.graph.reading.fitting import known_outputs, typed_inputs
        from enginefarm.graph.reading.raising import raised
        from enginefarm.graph.reading.readable import make_readable

        file = original(source, root, work_dir)
        model = onnx_files.read(file, error=SourceError, field="source.path")
        what = f"source.path: {source.path}"
        completed = typed_inputs(model, what, inputs)
        if completed:
            what += f", with the recipe's shape of {', '.join(completed)}"
        make_readable(model, what)
        model = raised(model, error=SourceError, what=what)
        known_outputs(model)
        path = onnx_files.write(model, work_dir)
        del model
        try:
            onnx_files.check(path, error=SourceError, what=what)
        except SourceError:
            if not _without_inner_shapes(path):
                raise
            onnx_files.check(path, error=SourceError, what=what)
            return Loaded(path, (STALE,))
        return Loaded(path)


def _without_inner_shapes(path: Path) -> bool:
    """In place: forgets what the file says about values between its nodes, which tools that edit a
    graph leave as it was; whether it said anything. Runtimes infer them anew."""
    model, forgotten = onnx_files.read(path, error=SourceError), False
    for graph in walk.graphs(model.graph):
        made = {name for node in graph.node for name in node.output}
        inner = {value.name for value in graph.value_info} & made
        onnx_shapes.forget(graph, inner)
        forgotten = forgotten or bool(inner)
    if forgotten:
        onnx_files.write(model, path.parent)
    return forgotten


def original(source: OnnxSource, root: Path, work_dir: Path) -> Path:
    """The original file. One in S3 is in work_dir already: `fetch` brought it."""
    if source.path.startswith("s3://"):
        return work_dir / DOWNLOADED / source.path.rpartition("/")[2]
    return local_file(source.path, root, field="source.path")


def _versions(url: str) -> dict[str, str]:
    """What changes when the model in S3 does, or a file that has its weights."""
    version = s3_file.version(url)
    data = {name: s3_file.version(_beside(url, name)) for name in _data_files_of(url, version)}
    return {"s3": version, **data}


@lru_cache(64)
def _data_files_of(url: str, version: str) -> tuple[str, ...]:
    """Names of the data files of that version; only the model itself says them."""
    file, _ = s3_file.cached(url)
    return tuple(one for one in _data_files(file) if external_data.may_hold(one, file.parent))


def _beside(url: str, name: str) -> str:
    return f"{url.rpartition('/')[0]}/{name}"


def _download(url: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in _data_files(s3_file.download(url, folder)):
        if external_data.may_hold(name, folder):  # load refuses any other
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            s3_file.download(_beside(url, name), (folder / name).parent)


class _Names(Frozen):
    names: tuple[str, ...]


def _data_files(file: Path) -> list[str]:
    """Names of the external data files, as the model spells them. A child process parses it."""
    if not _holds(file, LOCATION):
        return []  # the key of every reference to such a file
    return list(_ask(file, "data_files_here"))


def _ask(file: Path, function: str) -> tuple[str, ...]:
    """What a function of this module says about the file, in a child process."""
    child = Child(f"source.path: {file.name}", error=SourceError, limits=Limits(PARSING_S))
    return child.ask(f"{__name__}:{function}", _Names(names=(str(file),)), _Names).names


def inputs_here(request: str) -> str:
    """The child's part: one path in, the names of inputs that have no initializer out."""
    file = Path(_Names.model_validate_json(request).names[0])
    name = f"source.path: {file.name}"
    model = onnx_files.graph_only(file, name=name)
    onnx_files.refuse_empty(model, name, SourceError)
    names = tuple(value.name for value in onnx_shapes.real_inputs(model))
    return _Names(names=names).model_dump_json()


def data_files_here(request: str) -> str:
    """The child's part: one path in, names out."""
    from google.protobuf.message import DecodeError
    from onnx import ModelProto
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    model = ModelProto()
    try:
        model.ParseFromString(Path(_Names.model_validate_json(request).names[0]).read_bytes())
    except DecodeError:
        return _Names(names=()).model_dump_json()  # load says so, and why
    used = (tensor for tensor in walk.tensors(model) if uses_external_data(tensor))
    names = sorted({ExternalDataInfo(tensor).location for tensor in used})
    return _Names(names=tuple(names)).model_dump_json()


def _holds(file: Path, word: bytes) -> bool:
    if file.stat().st_size == 0:
        return False  # mmap refuses it; load says so
    with file.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as data:
        return data.find(word) >= 0
