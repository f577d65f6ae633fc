"""A user's mistake is one clear error with its exit code, and never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from enginefarm import cli
from enginefarm.cli.foreign_errors import extra_of
from enginefarm.documents.data import Data
from enginefarm.documents.recipe import TensorSpec
from enginefarm.errors import CalibrationError, CorruptBlob, DiskFull, EnginefarmError, RecipeError
from enginefarm.graph.samples import data
from enginefarm.planning import plugins
from enginefarm.recipes import file as recipe_file
from tests import tiny_recipe

FARM_ONLY = (
    *("torch", "prefect", "onnx", "onnxruntime", "onnxslim", "pandas", "numpy", "pyarrow"),
    *("safetensors", "jinja2", "fastapi", "sqlalchemy", "psutil"),
)

WITHOUT_THEM = """
import contextlib, io, json, sys
for name in json.loads(sys.argv[1]):
    sys.modules[name] = None
from enginefarm.cli import run
found = {}
for command in json.loads(sys.argv[2]):
    sys.argv = ["enginefarm", *command]
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        found[" ".join(command)] = [run(command), said.getvalue()]
print(json.dumps(found))
"""


def test_without_the_farms_packages_each_command_says_which_extra_it_needs(
    tmp_path: Path,
) -> None:
    recipe = str(tiny_recipe.write(tmp_path))
    commands = [["build", recipe], ["server"], ["worker", "--gpu", "t4"], ["workers"], ["deploy"]]
    environment = {**os.environ, "ENGINEFARM_HOME": str(tmp_path), "ENGINEFARM_CACHE": "c"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THEM, json.dumps(FARM_ONLY), json.dumps(commands)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {words: code for words, (code, _) in found.items()} == {
        " ".join(words): 26 for words in commands
    }, found
    for _, said in found.values():
        assert "pip install 'enginefarm[farm]'" in said
        assert "Traceback" not in said


def test_the_extra_of_a_module_is_read_from_the_packages_own_metadata() -> None:
    assert extra_of("torch.nn") == "torch"
    assert extra_of("prefect") == "farm"
    assert extra_of("pycuda") == "gpu"
    assert extra_of("boto3") is None
    assert extra_of("a_module_of_a_recipe") is None


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied", "/here"),
        NotADirectoryError(20, "Not a directory", "/here"),
        OSError(36, "File name too long", "/here"),
        OSError(30, "Read-only file system", "/here"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    error: OSError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli.cli, "main", main)
    assert cli.run(["list"]) == 2
    assert capsys.readouterr().err.startswith("error: /here cannot be used\n  why: ")


@pytest.mark.parametrize("name", ["ENGINEFARM_HOME", "ENGINEFARM_CACHE"])
def test_a_folder_of_our_own_that_cannot_be_used_is_named_by_its_setting(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(**_: object) -> None:
        (tmp_path / "own" / "farm").mkdir(parents=True)

    (tmp_path / "own").write_text("a file in place of the folder")
    monkeypatch.setenv(name, str(tmp_path / "own"))
    monkeypatch.setattr(cli.cli, "main", main)
    assert cli.run(["up"]) == 2
    assert f"set {name} to a folder that you may write" in capsys.readouterr().err


def test_a_full_disk_is_46_and_names_a_folder_that_commands_write_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def main(**_: object) -> None:
        with Path("/dev/full").open("w", encoding="utf-8") as full:
            full.write("x" * 100_000)

    for name in ("ENGINEFARM_CACHE", "ENGINEFARM_HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.cli, "main", main)
    assert cli.run(["list"]) == DiskFull.exit_code
    said = capsys.readouterr().err
    assert "disk: no room to write" in said
    assert str(tmp_path) in said


def test_control_bytes_and_surrogates_do_not_reach_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(**_: object) -> None:
        raise RecipeError("name: \x1b[2J\x07\x9b31m\udcff", why="a\ttab\nand a line")

    monkeypatch.setattr(cli.cli, "main", main)
    assert cli.run(["list"]) == 10
    said = capsys.readouterr().err
    assert said == "error: name: \\x1b[2J\\x07\\x9b31m\\udcff\n  why: a\ttab\nand a line\n"


@pytest.mark.parametrize(
    "words",
    [["pull", "caf\udce9"], ["report", "-o", "\udcff/r.html"], ["\udcff"], ["list", "\ud800"]],
)
def test_arguments_that_are_not_utf_8(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Names in the store are, and libraries take no other paths."""
    assert cli.run(words) == 2
    said = capsys.readouterr().err
    assert "is not UTF-8" in said
    assert "\\udc" in said or "\\ud8" in said


def _prices(folder: Path) -> Path:
    path = folder / "prices.toml"
    path.write_text("currency = 'EUR'\n[per_hour]\nt4 = 0.5\n")
    return path


def test_prices_nested_without_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(f"t4 = {'[' * 100_000}")
    assert cli.run(["cost", "m", "--prices", str(path)]) == 2
    assert "the prices cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["../x", "a b", "%", "a@b@c", "model@../x", "n" * 65, "", "\n", "model@-x"]
)
@pytest.mark.parametrize(
    "command",
    [
        *(
            ["pull", "{}", "--gpu", "t4"],
            ["package", "{}"],
            ["triton-repo", "{}", "d"],
            ["cost", "{}"],
        ),
        *(["show", "{}"], ["diff", "{}", "{}"], ["bom", "{}"], ["bench", "history", "{}"]),
        *(["log", "{}", "--gpu", "t4"], ["reproduce", "{}", "d"], ["fleet", "{}@c"]),
        ["rollout", "{}", "d"],
        ["rollout", "m", "d", "--from", "{}"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_a_name_is_told_before_a_store_is_asked(
    name: str,
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENGINEFARM_STORE", "s3://nowhere")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    words = [word.format(name) for word in command]
    if command[0] == "cost":
        words += ["--prices", str(_prices(tmp_path))]
    assert cli.run(words) == 2, capsys.readouterr().err
    said = capsys.readouterr().err
    assert "cannot be the name of a" in said or "does not name a channel" in said


def test_a_reader_that_has_enough_is_no_error(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    script = "import sys; from enginefarm.cli import main; main(['gpus'])"
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "1e400", "x"])
def test_numbers_that_are_none(
    seconds: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(tiny_recipe.write(tmp_path))
    assert cli.run(["bench", "run", recipe, "--seconds", seconds]) == 2
    assert "--seconds" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        "doctor PIPE",
        "doctor FILE --manifest PIPE",
        "cost model --prices PIPE",
        "plan PIPE",
        "keygen PIPE",
        "report --output PIPE",
        "pull model --dest PIPE",
        "pull model --dest /dev/zero",
    ],
)
def test_a_pipe_or_a_device_is_not_waited_for(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    (file := tmp_path / "file").write_bytes(b"x" * 100)
    words = command.replace("PIPE", str(pipe)).replace("FILE", str(file)).split()
    assert cli.run(words) == 2
    assert "is a pipe or a device" in capsys.readouterr().err


def test_a_damaged_manifest_of_a_plan_is_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (plan := tmp_path / "engine.plan").write_bytes(b"x" * 100)
    (beside := tmp_path / "engine.plan.json").write_text("{}")
    assert cli.run(["doctor", str(plan)]) == CorruptBlob.exit_code
    assert str(beside) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [("PREFECT_API_URL", "http://[::1"), ("PREFECT_CLIENT_MAX_RETRIES", "many")],
)
def test_a_setting_of_prefect_that_cannot_be_used_is_one_error(name: str, value: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from enginefarm.cli import main; main(['deploy'])"],
        env={**os.environ, name: value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "error: Prefect's settings cannot be used" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "gc --grace-hours 1e300",
        f"gc --keep-revisions {10**30}",
        f"gc --keep-builds {10**30}",
        "cache prune --keep-gb 1e300",
    ],
)
def test_numbers_that_are_too_large(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = command.split()
    assert cli.run(words) == 2
    assert words[-2] in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "empty"])
def test_a_plugin_that_is_no_library(tmp_path: Path, kind: str) -> None:
    recipe = recipe_file.load(tiny_recipe.write(tmp_path, plugins=["plugin.so"]))
    plugin = tmp_path / "plugin.so"
    if kind == "folder":
        plugin.mkdir()
    elif kind == "pipe":
        os.mkfifo(plugin)
    elif kind == "empty":
        plugin.touch()
    with pytest.raises(RecipeError, match=r"plugins: plugin\.so: "):
        plugins.digests(recipe)


def encrypted(file: Path) -> None:
    content = bytearray(file.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = -1
        while (start := content.find(mark, start + 1)) >= 0:
            content[start + offset] |= 1
    file.write_bytes(content)


def of_method_99(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[content.find(b"PK\x01\x02") + 10] = 99
    content[content.find(b"PK\x03\x04") + 8] = 99
    file.write_bytes(content)


def with_hostile_header(file: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (__import__('os'),), }"
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", member)


@pytest.mark.parametrize("damage", [encrypted, of_method_99, with_hostile_header])
@pytest.mark.parametrize("in_folder", [False, True])
def test_an_archive_that_numpy_cannot_read(tmp_path: Path, damage: object, in_folder: bool) -> None:
    file = tmp_path / "folder" / "data.npz"
    file.parent.mkdir()
    np.savez(file, x=np.zeros((4, 3), np.float32))
    damage(file)  # type: ignore[operator]
    source = Data(path="folder" if in_folder else "folder/data.npz")
    inputs = (TensorSpec(name="x", shape=("batch", 3)),)
    with pytest.raises(CalibrationError, match=r"data\.npz cannot be read"):
        list(data.batches(source, root=tmp_path, inputs=inputs, batches=2, batch_size=2, seed=0))


def test_a_pipe_among_the_data_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "a.npz")
    source = Data(path="folder")
    with pytest.raises(EnginefarmError, match=r"no \.npz or \.npy file"):
        data.data_digest(source, tmp_path)
