"""A .pt2 is an archive with pickles in it: it is searched before torch loads it."""

from __future__ import annotations

import json
import pickle
import time
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import recipe

from enginefarm.documents.recipe import Recipe
from enginefarm.documents.sources import ExportedProgramSource
from enginefarm.errors import ExportError, SourceError, UnsafeCheckpointError
from enginefarm.graph.exporting import torch_export
from enginefarm.graph.samples import feeds
from enginefarm.graph.sources import forward, source
from enginefarm.graph.verification.reference import make_reference

SOURCE = ExportedProgramSource(kind="exported_program", path="model.pt2")


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).repeat(2, 1)[: x.shape[0] * 2 - 1]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt2"
    batch = torch.export.Dim("batch", min=2, max=8)
    made = torch.export.export(Model().eval(), (torch.randn(3, 4),), dynamic_shapes=({0: batch},))
    torch.export.save(made, path)
    return path


def rewrite(path: Path, change: Callable[[str, bytes], bytes], extra: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    top = next(iter(members)).partition("/")[0]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, change(name, data))
        for name, data in extra.items():
            archive.writestr(f"{top}/{name}", data)


def load(tmp_path: Path) -> Any:
    return source("exported_program").load(SOURCE, tmp_path, tmp_path).model


def test_a_program_with_dynamic_shapes_loads(program: Path, tmp_path: Path) -> None:
    module = load(tmp_path).module()
    assert module(torch.ones(5, 4)).shape == (9, 2)


def test_a_pickled_object_is_refused(program: Path, tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    rewrite(
        program,
        lambda name, data: data,
        {"data/constants/opaque_obj_0": pickle.dumps(Touch(proof))},
    )
    with pytest.raises(UnsafeCheckpointError, match="opaque_obj_0"):
        load(tmp_path)
    assert not proof.exists()


def test_pickled_sample_inputs_that_run_code_are_refused(program: Path, tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    evil = tmp_path / "evil.pt"
    torch.save(Touch(proof), evil)
    swapped = evil.read_bytes()
    rewrite(
        program,
        lambda name, data: swapped if name.endswith("sample_inputs/model.pt") else data,
        {},
    )
    with pytest.raises(UnsafeCheckpointError, match="weights_only"):
        load(tmp_path)
    assert not proof.exists()


def edited(path: Path, member: str, change: Callable[[Any], Any]) -> None:
    """The archive with one of its JSON files changed."""

    def rewritten(name: str, data: bytes) -> bytes:
        if not name.endswith(member):
            return data
        found.append(name)
        document = json.loads(data)
        return json.dumps(change(document) or document).encode()

    found: list[str] = []
    rewrite(path, rewritten, {})
    assert found, "or the test proves nothing"


CONFIG = "model_weights_config.json"


@pytest.mark.parametrize("escaped", [False, True])
def test_a_pickled_weight_is_refused(program: Path, tmp_path: Path, escaped: bool) -> None:
    proof, evil = tmp_path / "executed", tmp_path / "evil.pt"
    torch.save(Touch(proof), evil)

    def change(name: str, data: bytes) -> bytes:
        if name.endswith("weights/weight_0"):
            return evil.read_bytes()
        if not name.endswith(CONFIG):
            return data
        document = json.loads(data)
        next(iter(document["config"].values()))["use_pickle"] = True
        text = json.dumps(document)
        return text.replace("use_pickle", "use\\u005fpickle" if escaped else "use_pickle").encode()

    rewrite(program, change, {})
    with suppress(Exception):
        torch.export.load(program)
    assert proof.exists(), "torch alone runs it: the attack is real"
    proof.unlink()
    with pytest.raises(UnsafeCheckpointError, match="pickled object"):
        load(tmp_path)
    assert not proof.exists()


@pytest.mark.parametrize(
    "path",
    [
        "data/constants/custom_obj_0",
        "data/constants/opaque_obj_0.bin",
        "data/weights/weight_0.pkl",
        "models/other.json",
        "models/model.JSON",
        "data/aotinductor/model/x.so",
        "data/weights/../constants/opaque_obj_0",
        "code.py",
    ],
)
def test_only_members_that_torch_writes_pass(program: Path, tmp_path: Path, path: str) -> None:
    rewrite(program, lambda name, data: data, {path: b"anything"})
    with pytest.raises(UnsafeCheckpointError, match="refused"):
        load(tmp_path)


def first_shape(document: Any) -> Any:
    values = document["graph_module"]["graph"]["tensor_values"].values()
    return next(d["as_expr"] for v in values for d in v["sizes"] if "as_expr" in d)


@pytest.mark.parametrize(
    "expression",
    [
        "9**9**9",
        "Pow(Integer(10), Integer(1000000000))",
        "Pow(Pow(Pow(Pow(Pow(2, 16), 16), 16), 16), 16)",
        "factorial(1000000000)",
        "LShift(1, 1 << 40)",
        "1 << 1000000000000",
        "Add(" * 90 + "1" + ")" * 90,
        "1" * 5000,
        "Symbol('s0', positive=True) + " * 2000 + "1",
        "(" * 5000,
    ],
)
def test_arithmetic_without_end_is_refused_at_once(
    program: Path, tmp_path: Path, expression: str
) -> None:
    edited(program, "model.json", lambda d: first_shape(d).update(expr_str=expression))
    started = time.monotonic()
    with pytest.raises(UnsafeCheckpointError, match="not arithmetic, or is too large"):
        load(tmp_path)
    assert time.monotonic() - started < 5


def test_an_expression_under_an_escaped_key_is_read(program: Path, tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    call = f"__import__('pathlib').Path({str(proof)!r}).touch()"

    def change(name: str, data: bytes) -> bytes:
        if not name.endswith("model.json"):
            return data
        document = json.loads(data)
        first_shape(document).update(expr_str=call)
        return json.dumps(document).replace('"expr_str"', '"expr\\u005fstr"').encode()

    rewrite(program, change, {})
    with pytest.raises(UnsafeCheckpointError, match="not arithmetic"):
        load(tmp_path)
    assert not proof.exists()


def test_guards_are_not_executed(program: Path, tmp_path: Path) -> None:
    proof = tmp_path / "executed"
    guard = f"__import__('pathlib').Path({str(proof)!r}).touch() is None"
    edited(program, "model.json", lambda d: d.update(guards_code=[guard]))
    assert load(tmp_path).module()(torch.ones(5, 4)).shape == (9, 2)
    assert not proof.exists()


def renamed(document: Any) -> Any:
    """The name of the input, everywhere: torch writes it into source that it executes."""
    return json.loads(json.dumps(document).replace('"x"', '"x=print(1)"'))


def nested(document: Any) -> None:
    spec = '[1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}]'
    document["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = spec


def reading(document: Any) -> None:
    document["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.from_file.default"


def calling(document: Any) -> None:
    document["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"


@pytest.mark.parametrize("change", [renamed, nested, reading, calling])
def test_names_operators_and_containers_are_those_that_torch_writes(
    program: Path, tmp_path: Path, change: Callable[[Any], Any]
) -> None:
    edited(program, "models/model.json", change)
    with pytest.raises(UnsafeCheckpointError, match="refused"):
        load(tmp_path)


def test_a_member_that_is_there_twice_is_refused(program: Path, tmp_path: Path) -> None:
    """torch and Python could each read another one of them."""
    with zipfile.ZipFile(program, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr(archive.namelist()[0], b"another")
    with pytest.raises(UnsafeCheckpointError, match="occurs twice"):
        load(tmp_path)


def test_a_compressed_member_is_refused(program: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(program) as archive:
        top = archive.namelist()[0].partition("/")[0]
    with zipfile.ZipFile(program, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{top}/data/weights/weight_99", bytes(1 << 24))
    with pytest.raises(UnsafeCheckpointError, match="compressed"):
        load(tmp_path)


def test_an_encrypted_archive_is_one_clear_error(program: Path, tmp_path: Path) -> None:
    data = bytearray(program.read_bytes())
    start = 0
    while (start := data.find(b"PK\x01\x02", start)) >= 0:
        data[start + 8] |= 1
        start += 4
    program.write_bytes(data)
    with pytest.raises(SourceError, match="is encrypted"):
        load(tmp_path)


@pytest.mark.parametrize("depth", [100_000])
def test_json_without_end_is_refused(program: Path, tmp_path: Path, depth: int) -> None:
    def change(name: str, data: bytes) -> bytes:
        return b"[" * depth if name.endswith("models/model.json") else data

    rewrite(program, change, {})
    with pytest.raises(UnsafeCheckpointError, match="not JSON"):
        load(tmp_path)


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "Add(\\\"__import__('os')\\\", 1)",
        "Symbol('s0').__class__",
        "[1 for _ in (1,)]",
        "open('x', 'w')",
    ],
)
def test_a_shape_expression_that_is_not_arithmetic_is_refused(
    program: Path, tmp_path: Path, expression: str
) -> None:
    found = []

    def change(name: str, data: bytes) -> bytes:
        text = b"Symbol('s"
        if name.endswith("models/model.json") and text in data:
            found.append(name)
            start = data.index(b'"expr_str": "') + len(b'"expr_str": "')
            end = data.index(b'"', start)
            return data[:start] + expression.encode() + data[end:]
        return data

    rewrite(program, change, {})
    assert found, "or the test proves nothing"
    with pytest.raises(UnsafeCheckpointError, match="not arithmetic"):
        load(tmp_path)


@pytest.mark.parametrize("data", [b"not a zip", b"PK\x03\x04 and no more"])
def test_a_file_that_is_no_program(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.pt2").write_bytes(data)
    with pytest.raises(SourceError, match=r"source\.path: model\.pt2 is not a \.pt2 file"):
        load(tmp_path)


class Nested(torch.nn.Module):
    def forward(self, pair: dict[str, torch.Tensor], *, scale: torch.Tensor) -> torch.Tensor:
        return (pair["a"] - pair["b"]) * scale


def nested(tmp_path: Path, *names: str) -> Recipe:
    """A program that was exported with a dict and a keyword; its inputs are b, a and scale."""
    batch = {0: torch.export.Dim("batch", min=2, max=16)}
    b, a, scale = (torch.full((2, 3), float(value)) for value in (1, 2, 3))
    program = torch.export.export(
        Nested(),
        ({"b": b, "a": a},),
        {"scale": scale},
        dynamic_shapes={"pair": {"b": batch, "a": batch}, "scale": batch},
    )
    torch.export.save(program, tmp_path / "model.pt2")
    inputs = [{"name": name, "shape": ["batch", 3]} for name in names]
    return recipe(
        tmp_path,
        source={"kind": "exported_program", "path": "model.pt2"},
        inputs=inputs,
        outputs=["y"],
        profiles=[{"dims": {"batch": [2, 4, 17]}}],
        precisions=["fp32"],
        verification={"data": {"random": True}},
        calibration=None,
    )


def test_a_program_is_called_as_it_was_exported_and_at_its_own_sizes(tmp_path: Path) -> None:
    made = nested(tmp_path, "b", "a", "scale")
    program = source("exported_program").load(made.source, tmp_path, tmp_path).model
    b, a, scale = (torch.full((2, 3), float(value)) for value in (1, 2, 3))
    assert torch.equal(forward.of_program(program)(b, a, scale), torch.full((2, 3), 3.0))
    with pytest.raises(ExportError, match=r"at max \(batch=17\): the program does not") as caught:
        make_reference(made, program, tmp_path / "r.npz", outputs=("y",))
    assert "torch.export.Dim" in caught.value.fix


def test_inputs_with_the_names_of_other_inputs_are_refused(tmp_path: Path) -> None:
    made = nested(tmp_path, "pair_a", "pair_b", "scale")
    program = source("exported_program").load(made.source, tmp_path, tmp_path).model
    with pytest.raises(ExportError, match="'pair_a' is listed in place of 'pair_b'") as caught:
        torch_export.export(program, made, feeds.sample(made))
    assert caught.value.why == "its inputs are pair_b, pair_a, scale"


@pytest.mark.parametrize("value", [3, 0.5, True])
def test_a_value_among_the_outputs_is_named(tmp_path: Path, value: object) -> None:
    class Both(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, object]:
            return x + 1, value

    torch.export.save(torch.export.export(Both(), (torch.ones(2),)), tmp_path / "model.pt2")
    with pytest.raises(SourceError, match=f"output 1 of the program is {value}"):
        source("exported_program").load(SOURCE, tmp_path, tmp_path)


@pytest.mark.parametrize("offset", [1 << 62, 1 << 63, (1 << 64) - 1])
def test_an_archive_whose_members_are_nowhere_is_one_error(
    program: Path, tmp_path: Path, offset: int
) -> None:
    with zipfile.ZipFile(program, "a") as archive:
        archive.writestr(archive.namelist()[0].partition("/")[0] + "/extra/x", b"x")
        archive.infolist()[0].header_offset = offset
    with pytest.raises(SourceError, match=r"is not a \.pt2 file"):
        source("exported_program").load(SOURCE, tmp_path, tmp_path)
