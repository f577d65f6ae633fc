"""The command line's frame: what it loads, what it says, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from enginefarm import cli
from enginefarm.errors import EnginefarmError, RecipeError, StoreDenied, command
from enginefarm.store import embedded

HEAVY = {"torch", "prefect", "onnx", "pandas", "tensorrt", "tensorrt_rtx", "boto3", "pydantic"}


def loaded_by(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after running `code`."""
    script = f"import sys\n{code}\nprint('\\n' + ' '.join(sys.modules), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in done.stderr.split("\n")[-2].split()}


def test_import_loads_no_heavy_library() -> None:
    assert not loaded_by("import enginefarm") & HEAVY


@pytest.mark.parametrize("arguments", [["--help"], ["pull", "--help"], ["build", "--help"]])
def test_help_loads_no_heavy_library(arguments: list[str]) -> None:
    assert not loaded_by(f"from enginefarm.cli import run; run({arguments})") & HEAVY


def test_help_names_every_command_with_a_line_of_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.run(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert f"\n  {name} " in shown


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_in_the_table_is_there_and_has_help(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([name, "--help"]) == 0
    assert "Usage: enginefarm" in capsys.readouterr().out


def test_an_error_is_its_message_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise StoreDenied("the key was refused", why="SignatureDoesNotMatch", fix="check it")

    monkeypatch.setattr(cli.cli, "main", fail)
    assert cli.run([]) == StoreDenied.exit_code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: the key was refused\n  why: SignatureDoesNotMatch")
    assert "Traceback" not in shown.err


@pytest.mark.parametrize(
    "command", [["plan"], ["why", "--gpu", "t4"], ["bench", "run"], ["report"]]
)
def test_a_recipe_that_is_not_there_starts_no_store(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ENGINEFARM_HOME", str(tmp_path))
    monkeypatch.delenv("ENGINEFARM_STORE", raising=False)
    monkeypatch.setattr(embedded, "start", lambda home: pytest.fail("a server was started"))
    assert cli.run([*command, "nowhere.yaml"]) == RecipeError.exit_code
    assert "nowhere.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["no-such-command"], ["gpus", "--no-such-option"]])
def test_usage_errors_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == 2
    assert "No such" in capsys.readouterr().err


def test_json_is_json_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["gpus", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"t4", "a100", "l4"} <= {row["label"] for row in rows}


def test_completion_offers_the_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from enginefarm.cli import main; main()"],
        env={
            "_ENGINEFARM_COMPLETE": "bash_complete",
            "COMP_WORDS": "enginefarm pu",
            "COMP_CWORD": "1",
            "PATH": "/usr/bin:/bin",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "plain,pull"


def test_a_command_that_has_ended_is_named_by_no_later_error() -> None:
    with pytest.raises(EnginefarmError):
        cli.cli.main(["plan", "no-such-recipe.yaml"], standalone_mode=False)
    assert command("promote") == "promote"
