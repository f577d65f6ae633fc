"""Labels in any case and with commas, and commands that were misspelt."""

from __future__ import annotations

from pathlib import Path

import pytest

from enginefarm.cli import run
from enginefarm.cli.options import MOST_WHY
from enginefarm.errors import GpuError
from enginefarm.store.channels import Revision
from tests.unit.recipes.test_infer import model


def test_labels_come_in_any_case_and_with_commas(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = model(tmp_path / "m.onnx", "n", 8)
    assert run(["init", str(path), "--gpu", "T4,l4", "--gpu", "A100", "--precision", "FP16"]) == 0
    shown = capsys.readouterr().out
    assert "gpus: [t4, l4, a100]" in shown
    assert "precisions: [fp16]" in shown


def test_what_was_meant_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["biuld"]) == 2
    assert "did you mean build?" in capsys.readouterr().err
    path = model(tmp_path / "m.onnx", "n", 8)
    assert run(["init", str(path), "--gpu", "a1000"]) != 0
    assert "did you mean a100?" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["list"], ["show", "m"], ["pull", "m"], ["url", "m"]])
def test_a_filter_that_nothing_can_match_is_refused_before_the_store_is_asked(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--gpu", "L44"]) == GpuError.exit_code
    assert "did you mean l4" in capsys.readouterr().err
    assert run([*command, "--precision", "fp15"]) == 2
    assert "'fp16'" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["bench", "table"], ["deploy"], ["init", "m.onnx"]])
def test_of_several_labels_each_has_to_be_known(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--gpu", "T4,L44"]) == GpuError.exit_code
    assert "did you mean l4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "meant"), [("--precision=fp16,INT4", "int8"), ("--runtime=tensort", "tensorrt")]
)
def test_rows_are_not_looked_for_under_a_name_that_none_has(
    option: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "table", option]) == 2
    assert f"did you mean {meant}?" in capsys.readouterr().err


def test_a_model_without_a_gpu_is_asked_for_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["init", str(model(tmp_path / "m.onnx", "n", 8))]) == 2
    assert "--gpu t4,l4" in capsys.readouterr().err


def test_options_of_a_model_are_refused_for_a_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["build", str(tmp_path / "recipe.yaml"), "--dim", "n=1"]) == 2
    assert "are only for a model" in capsys.readouterr().err


def test_a_recipe_is_kept(tmp_path: Path) -> None:
    path = model(tmp_path / "m.onnx", "n", 8)
    kept = tmp_path / "recipe.yaml"
    assert run(["init", str(path), "--gpu", "t4", "--save", str(kept)]) == 0
    assert "name: m " in kept.read_text()
    assert run(["init", str(path), "--gpu", "t4", "--save", str(kept)]) == 2


def test_the_worker_suggests_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["worker", "--gpu", "a10O"]) == GpuError.exit_code
    assert "did you mean a10" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["pull", "m", "--gpu", "t4", "--dest", ""],
        ["report", "--output", ""],
        ["keygen", ""],
        ["plan", ""],
        ["package", "m", ""],
        ["reproduce", "m/t4/fp16", ""],
    ],
)
def test_an_empty_path_is_not_the_working_folder(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command) == 2
    assert "the path is empty" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["promote", "m"], ["rollback", "m", "production"]])
def test_a_reason_that_no_log_takes_is_refused_before_anything_moves(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    most = Revision.model_fields["why"].metadata[0].max_length
    assert most == MOST_WHY
    assert run([*command, "--why", "x" * (MOST_WHY + 1)]) == 2
    assert "--why: the reason has 2,001 characters" in capsys.readouterr().err
