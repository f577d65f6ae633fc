"""What hostile bytes are given to, each as the farm itself would."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from enginefarm.documents.sources import ExportedProgramSource, OnnxSource
from enginefarm.errors import EnginefarmError
from enginefarm.host.plan_header import read_plan_header
from enginefarm.recipes import file as recipe_file
from enginefarm.store import layout
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.s3 import parse_url
from enginefarm.store.sources import PresignedUrl
from enginefarm.toolchains.trtexec import parse_log
from tests.unit.fuzz import seeds

Target = Callable[[bytes], object]


def recipe(data: bytes) -> object:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_bytes(data)
        return recipe_file.load(file)


class OneObject:
    """A store that answers every get with the same bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def get(self, key: str) -> tuple[bytes, str]:
        return self.data, '"etag"'


def manifest(data: bytes) -> object:
    store = EngineStore(OneObject(data), "s3://fuzz")  # type: ignore[arg-type]
    found = store.manifest("0" * 64)
    raise AssertionError(f"a manifest was accepted under a key that is not its own: {found}")


def plan_header(data: bytes) -> object:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "engine.plan"
        file.write_bytes(data)
        return read_plan_header(file)


def index_key(data: bytes) -> object:
    """An entry, or None for a stray object; never a path that leads elsewhere."""
    entry = layout.parse_index(data.decode("utf-8", "replace"))
    if entry is not None and any("/" in part for part in entry):
        raise AssertionError(entry)
    return entry


def store_url(data: bytes) -> object:
    """A bucket, and a prefix that is empty or one folder."""
    bucket, prefix = parse_url(data.decode("utf-8", "replace"))
    assert "@" not in bucket, "a key in a URL would be printed"
    assert prefix == "" or prefix.endswith("/")
    return bucket


def url(data: bytes) -> object:
    parsed = PresignedUrl.parse(data.decode("utf-8", "replace"))
    joined = Path("/folder") / parsed.name
    assert joined.parent == Path("/folder"), parsed.name
    assert parsed.name not in (".", "..")
    return parsed


TARGETS: dict[str, Target] = {
    "recipe": recipe,
    "manifest": manifest,
    "trtexec_log": lambda data: parse_log(data.decode("utf-8", "replace")),
    "plan_header": plan_header,
    "index_key": index_key,
    "url": url,
    "store_url": store_url,
}


def onnx(data: bytes) -> object:
    """As the child that exports reads it: model, limits, data, checker, inputs, a precision."""
    from enginefarm.graph.model import onnx_files, onnx_shapes
    from enginefarm.graph.sources import source

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        file.write_bytes(data)
        kept = OnnxSource(kind="onnx", path=file.name)
        made = source("onnx").load(kept, file.parent, file.parent / "w").model
        model = onnx_files.read(made)
        onnx_files.broken_tensor(model)
        return onnx_shapes.input_signature(model)


def pt2(data: bytes) -> object:
    from enginefarm.graph.sources import source

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.pt2"
        file.write_bytes(data)
        kept = ExportedProgramSource(kind="exported_program", path=file.name)
        return source("exported_program").load(kept, file.parent, file.parent)


def checkpoint(data: bytes) -> object:
    """A checkpoint of any format, as the child that loads weights reads it."""
    return _weights("weights.pt", {"weights.pt": data})


def checkpoint_index(data: bytes) -> object:
    """An index beside the one shard that it should name."""
    return _weights(
        "m.safetensors.index.json", {"m.safetensors.index.json": data, **seeds.shards()}
    )


def _weights(named: str, files: dict[str, bytes]) -> object:
    from enginefarm.graph.sources import checkpoint_files, state_dict

    with tempfile.TemporaryDirectory() as folder:
        for name, body in files.items():
            (Path(folder) / name).write_bytes(body)
        found = checkpoint_files.find(named, Path(folder), field="source.checkpoint")
        return state_dict.read(found, field="source.checkpoint")


def samples(data: bytes) -> object:
    """Calibration data: an .npz if the bytes are an archive, and an .npy otherwise."""
    from enginefarm.documents.data import Data
    from enginefarm.documents.recipe import TensorSpec
    from enginefarm.graph.samples.data import batches

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / ("data.npz" if data[:2] == b"PK" else "data.npy")
        file.write_bytes(data)
        inputs = (TensorSpec(name="x", dtype="float32", shape=("n", 2)),)
        kept = Data(path=file.name)
        asked = {"root": file.parent, "inputs": inputs, "batches": 4, "batch_size": 2, "seed": 0}
        return [*batches(kept, **asked)]


def signature(data: bytes) -> object:
    """The envelope of an engine's signature: damaged ones are refused."""
    return seeds.trust().require(seeds.manifest(), data)


FUZZED: dict[str, Target] = {
    "recipe": recipe,
    "onnx": onnx,
    "manifest": manifest,
    "pt2": pt2,
    "plan_header": plan_header,
    "url": url,
    "index_key": index_key,
    "checkpoint": checkpoint,
    "checkpoint_index": checkpoint_index,
    "samples": samples,
    "signature": signature,
}
"""What `make fuzz` works on."""

NATIVE = ("onnx", "pt2")
"""Read in child processes alone: there a signal is one error."""


def outcome(target: Target, data: bytes) -> str:
    """`accepted`, or the kind of the deliberate error. Anything else that is raised is a bug."""
    try:
        target(data)
    except EnginefarmError as error:
        check_message(str(error))
        return type(error).__name__
    return "accepted"


def check_message(text: str) -> None:
    """An error is for people to read."""
    assert text
    assert "Traceback" not in text
    assert len(text) < 20_000
