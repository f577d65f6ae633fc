"""`enginefarm run`: from the command line through the fresh process to the outputs' file."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_manifest import make_manifest, ref
from tiny_plans import LARGE, SMALL

from enginefarm import cli
from enginefarm.documents.manifest import TensorInfo
from enginefarm.errors import EngineRunError, HostError, NoEngineFits, UsageError
from enginefarm.host import detect
from enginefarm.host.detect import NvmlGpu

A100 = NvmlGpu(
    name="NVIDIA A100-SXM4-40GB", compute_capability="8.0", driver="580.95.05", driver_cuda=13000
)
ROOT = Path(__file__).parents[3]
Said = pytest.CaptureFixture[str]


@pytest.fixture
def engine(
    plan: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """A plan that doubles x, with its manifest beside it, on a host with an A100."""
    monkeypatch.setattr(detect, "first_gpu", lambda: A100)
    monkeypatch.setenv("ENGINEFARM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ENGINEFARM_TENSORRT", "10.16.1.11")

    def make(label: str = "a100", **faults: str) -> Path:
        made = plan(**faults)
        manifest = make_manifest(label=label, engine=made.read_bytes(), on_device="passed")
        spec = manifest.spec.model_copy(update={"profiles": (SMALL, LARGE)})
        tensors = tuple(
            TensorInfo(name=name, dtype="float32", shape=(-1, 4), role=role)
            for name, role in (("x", "input"), ("y", "output"))
        )
        manifest = manifest.model_copy(
            update={"spec": spec, "tensors": tensors, "engine": ref(made.read_bytes())}
        )
        made.with_name(f"{made.name}.json").write_bytes(manifest.canonical_json())
        return made

    return make


def run(*arguments: object) -> int:
    return cli.run(["run", *map(str, arguments)])


def test_inputs_of_a_file_give_outputs_in_a_file(
    engine: Callable[..., Path], tmp_path: Path, capsys: Said
) -> None:
    x = np.arange(20, dtype=np.float32).reshape(5, 4)
    np.savez(tmp_path / "in.npz", x=x)
    assert run(engine(), "--input", tmp_path / "in.npz", "--output", tmp_path / "out.npz") == 0
    with np.load(tmp_path / "out.npz") as outputs:
        assert outputs.files == ["y"]
        assert outputs["y"].dtype == np.float32
        np.testing.assert_array_equal(outputs["y"], 2 * x)
    said = capsys.readouterr().out
    assert "on Fake A100, profile large" in said, "five samples are more than small takes"
    assert "5×4" in said
    assert "inputs, given" in said


@pytest.mark.parametrize("form", ["x=FILE", "FILE"])
def test_one_array_by_name_or_where_the_engine_has_one_input(
    form: str, engine: Callable[..., Path], tmp_path: Path, capsys: Said
) -> None:
    np.save(tmp_path / "in.npy", np.full((2, 4), 3, np.float64))
    asked = form.replace("FILE", str(tmp_path / "in.npy"))
    assert run(engine(), "--input", asked, "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)["outputs"]
    assert (found["name"], found["shape"], found["min"], found["max"]) == ("y", [2, 4], 6.0, 6.0)


def test_random_inputs_are_of_the_profile_and_repeat(
    engine: Callable[..., Path], capsys: Said
) -> None:
    plan = engine()
    found: dict[str, Any] = {}
    for name, more in (
        ("first", ()),
        ("again", ()),
        ("seed", ("--seed", 1)),
        ("large", ("--profile", "large")),
    ):
        assert run(plan, "--json", *more) == 0
        found[name] = json.loads(capsys.readouterr().out)
    assert found["first"]["random"] is True
    assert found["first"]["inputs"] == {"x": [2, 4]}
    assert found["large"]["inputs"] == {"x": [8, 4]}
    digests = {name: one["outputs"][0]["sha256"] for name, one in found.items()}
    assert digests["first"] == digests["again"]
    assert len({digests["first"], digests["seed"], digests["large"]}) == 3


def test_infinities_are_counted_and_kept_out_of_the_range(
    engine: Callable[..., Path], tmp_path: Path, capsys: Said
) -> None:
    x = np.array([[1, np.inf, np.nan, 2]], np.float32)
    np.save(tmp_path / "in.npy", x)
    assert run(engine(), "--input", tmp_path / "in.npy", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)["outputs"]
    assert (found["not_finite"], found["min"], found["max"]) == (2, 2.0, 4.0)


def not_numpy(folder: Path) -> str:
    (folder / "in.npy").write_bytes(b"no array")
    return str(folder / "in.npy")


def objects(folder: Path) -> str:
    np.save(folder / "in.npy", np.array([{}], dtype=object), allow_pickle=True)
    return str(folder / "in.npy")


def array(folder: Path, *shape: int, name: str = "", dtype: Any = np.float32) -> str:
    np.save(folder / "in.npy", np.zeros(shape, dtype))
    return f"{name}{folder / 'in.npy'}"


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (not_numpy, r"in\.npy cannot be read"),
        (objects, r"in\.npy cannot be read"),
        (lambda folder: str(folder / "none.npy"), "No such file"),
        (lambda folder: str(folder / "in.txt"), "neither .npy nor .npz"),
        (lambda folder: array(folder, 65, 4), r"large: x \(4, 4\) to \(64, 4\)"),
        (lambda folder: array(folder, 4), r"no profile of the engine takes x \(4,\)"),
        (lambda folder: array(folder, 2, 4, name="z="), "z is not an input of the engine"),
    ],
)
def test_inputs_that_cannot_be_are_named(
    made: Callable[[Path], str],
    says: str,
    engine: Callable[..., Path],
    tmp_path: Path,
    capsys: Said,
) -> None:
    assert run(engine(), "--input", made(tmp_path)) == UsageError.exit_code
    said = capsys.readouterr().err
    assert re.search(says, said), said
    assert "Traceback" not in said


def test_a_type_that_loses_numbers_is_refused(
    engine: Callable[..., Path], tmp_path: Path, capsys: Said
) -> None:
    given = array(tmp_path, 2, 4, dtype=np.int64)
    assert run(engine(), "--input", given) == EngineRunError.exit_code
    assert "input 'x' is int64, and the engine takes float32" in capsys.readouterr().err


def test_an_engine_that_fails_is_one_error(engine: Callable[..., Path], capsys: Said) -> None:
    assert run(engine(enqueue="a kernel refused")) == EngineRunError.exit_code
    said = capsys.readouterr().err
    assert "a kernel refused" in said
    assert "Traceback" not in said


def test_a_plan_for_another_gpu_is_not_tried(engine: Callable[..., Path], capsys: Said) -> None:
    assert run(engine(label="t4")) == NoEngineFits.exit_code
    assert "built for t4" in capsys.readouterr().err


def test_a_plan_that_changed_is_not_tried(engine: Callable[..., Path], capsys: Said) -> None:
    plan = engine()
    plan.write_bytes(plan.read_bytes() + b" ")
    assert run(plan) == NoEngineFits.exit_code
    assert "bytes: sha256" in capsys.readouterr().err


def test_a_plan_without_a_manifest_says_how_to_get_one(
    engine: Callable[..., Path], capsys: Said
) -> None:
    plan = engine()
    plan.with_name(f"{plan.name}.json").unlink()
    assert run(plan) == UsageError.exit_code
    assert "m.plan.json does not exist" in capsys.readouterr().err


def test_without_a_gpu_nothing_is_downloaded_and_the_page_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.setattr(detect, "first_gpu", lambda: None)
    monkeypatch.setenv("ENGINEFARM_STORE", "s3://nowhere/at-all")
    assert run("model@production") == HostError.exit_code
    said = capsys.readouterr().err
    assert "no NVIDIA GPU" in said
    page = re.search(r"docs/\w+\.md", said)
    assert page is not None
    assert (ROOT / page[0]).is_file()


def test_it_needs_numpy_alone_beside_the_runtime(
    engine: Callable[..., Path], tmp_path: Path
) -> None:
    """Of the farm's packages none is loaded on an inference host."""
    script = (
        "import sys\n"
        "for name in ('prefect', 'pandas', 'torch', 'ruamel', 'onnxruntime', 'onnxslim'):\n"
        "    sys.modules[name] = None\n"
        "from enginefarm.host import detect\n"
        f"detect.first_gpu = lambda: detect.{A100!r}\n"
        "from enginefarm import cli\n"
        "sys.exit(cli.run(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "run", str(engine())], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "random (seed 0): x 2×4" in done.stdout
