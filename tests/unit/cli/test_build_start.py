"""What `enginefarm build` does while Prefect and the flow start: it says so, and exports."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
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
from enginefarm.recipes import file as recipe_file
from enginefarm.store import check
from tests import tiny_recipe


class Start:
    """An API that answers only once the export has begun, and a flow that asks for the export."""

    def __init__(self) -> None:
        self.happened: list[str] = []
        self.exporting, self.flowing = threading.Event(), threading.Event()
        self.error: EnginefarmError | None = None

    def wait(self) -> None:
        assert self.exporting.wait(20), "the export waits for the API"
        self.happened.append("API up")

    def export(self, site: Any, recipe: Any, key: str) -> str:
        self.happened.append("export")
        self.exporting.set()
        report("export", 0, None)
        assert self.flowing.wait(20), "the flow waits for the export"
        if self.error:
            raise self.error
        report("export", 1, 1)
        return "the graph"

    def flow(self, recipe: str, gpus: Any, precisions: Any, *, return_state: bool) -> Any:
        self.happened.append("flow")
        self.flowing.set()
        result: Any = []
        try:
            self.happened.append(str(stages.export(stages.here(), recipe_file.load(Path(recipe)))))
        except EnginefarmError as error:
            result = error
        return SimpleNamespace(result=lambda *, raise_on_failure: result)


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
    monkeypatch.setattr(stages, "_export", made.export)
    return made


def test_the_export_begins_before_the_api_is_up_and_the_flow_takes_its_result(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["build", str(tiny_recipe.write(tmp_path))]) == 0
    assert start.happened == ["export", "API up", "flow", "the graph"]
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("tiny: "), "the first line says what is built"
    assert "  export done" in said, "the export's progress is shown, though it is in a thread"


def test_an_export_that_fails_is_made_once(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start.error = ExportError("export: node 7 is not known")
    assert cli.run(["build", str(tiny_recipe.write(tmp_path))]) == ExportError.exit_code
    assert "node 7 is not known" in capsys.readouterr().err
    assert start.happened == ["export", "API up", "flow"]


def test_no_flow_begins_after_an_export_that_failed(
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failed: Future[Any] = Future()
    failed.set_exception(ExportError("export: node 7 is not known"))
    monkeypatch.setattr(stages, "begin_export", lambda pool, site, recipe: failed)
    start.exporting.set()
    assert cli.run(["build", str(tiny_recipe.write(tmp_path))]) == ExportError.exit_code
    assert "node 7 is not known" in capsys.readouterr().err
    assert start.happened == ["API up"]


def test_with_json_nothing_is_said_before_the_rows(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["build", str(tiny_recipe.write(tmp_path)), "--json"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("[]\n", "")
