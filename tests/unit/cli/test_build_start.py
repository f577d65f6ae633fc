"""What `enginefarm build` does while Prefect and its API start: it says so, and exports."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from enginefarm import cli
from enginefarm.cli import build
from enginefarm.errors import EnginefarmError, ExportError
from enginefarm.farm.server import environment, private
from enginefarm.planning import stages
from enginefarm.progress import report
from enginefarm.store import check
from tests import tiny_recipe


class Start:
    """A flow, and an API that answers only once the export has begun."""

    def __init__(self) -> None:
        self.happened: list[str] = []
        self.exporting = threading.Event()

    def wait(self) -> None:
        assert self.exporting.wait(20), "the export waits for the API"
        self.happened.append("API up")

    def export(self, site: Any, recipe: Any) -> str:
        self.exporting.set()
        report("export", 0, None)
        report("export", 1, 1)
        self.happened.append("exported")
        return "exported"

    def flow(self, recipe: str, gpus: Any, precisions: Any, *, return_state: bool) -> Any:
        self.happened.append("flow")
        return SimpleNamespace(result=lambda *, raise_on_failure: [])


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Start:
    made = Start()

    @contextmanager
    def api() -> Iterator[Start]:
        yield made

    missing = type("EnginesMissing", (EnginefarmError,), {})
    flows = SimpleNamespace(build_model=made.flow, EnginesMissing=missing)
    monkeypatch.setitem(sys.modules, "flows.build_model", flows)  # type: ignore[arg-type]
    monkeypatch.setattr(environment, "prepare", lambda **_: None)
    monkeypatch.setattr(private, "private_api", api)
    monkeypatch.setattr(build, "_all_cached", lambda wanted: None)
    monkeypatch.setattr(check, "require_conditional_writes", lambda objects: None)
    site = SimpleNamespace(store=SimpleNamespace(objects=None))
    monkeypatch.setattr(stages, "here", lambda: site)
    monkeypatch.setattr(stages, "export", made.export)
    return made


def test_the_export_begins_before_the_api_is_up_and_ends_before_the_flow(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["build", str(tiny_recipe.write(tmp_path))]) == 0
    assert set(start.happened[:2]) == {"exported", "API up"}
    assert start.happened[2:] == ["flow"]
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("tiny: "), "the first line says what is built"
    assert "  export done" in said, "the export's progress is shown, though it is in a thread"


def test_an_export_that_fails_ends_the_command_without_a_flow(
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(site: Any, recipe: Any) -> None:
        start.exporting.set()
        raise ExportError("export: node 7 is not known")

    monkeypatch.setattr(stages, "export", fails)
    assert cli.run(["build", str(tiny_recipe.write(tmp_path))]) == ExportError.exit_code
    assert "node 7 is not known" in capsys.readouterr().err
    assert start.happened == ["API up"]


def test_with_json_nothing_is_said_before_the_rows(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["build", str(tiny_recipe.write(tmp_path)), "--json"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("[]\n", "")
