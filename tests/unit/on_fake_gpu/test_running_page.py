"""The programs of docs/running.md, run word for word on the fake GPU."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_plans import doubling

from enginefarm.names import RUNTIMES
from enginefarm.run.ort_engine import PROVIDER

PAGE = Path(__file__).parents[3] / "docs" / "running.md"
PROGRAMS = dict(
    re.findall(r"^```python ([\w-]+)\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
)
LOADERS = {name: row for name, row in RUNTIMES.items() if row.told_by}


def test_every_runtime_has_a_program_and_an_install_line() -> None:
    assert set(PROGRAMS) == {*LOADERS, "enginefarm"}
    installs = re.findall(r"`pip install (.*)` \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    named = {tuple(word.partition("==")[0] for word in line.split()) for line in installs}
    assert named == {tuple(row.install.split()) for row in LOADERS.values()}


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx", "enginefarm"])
def test_the_program_runs_the_plan(
    name: str,
    plan: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import tensorrt

    monkeypatch.setitem(sys.modules, "tensorrt_rtx", tensorrt)
    _run(name, plan(), tmp_path, monkeypatch)
    assert capsys.readouterr().out == "(2, 4) 2.0\n"


@pytest.mark.parametrize("providers", [[PROVIDER], ["CPUExecutionProvider"]])
def test_the_program_for_onnx_runtime_takes_no_other_provider(
    providers: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import onnxruntime

    def session(model: str, **asked: Any) -> Any:
        assert asked == {"providers": [PROVIDER]}
        found = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        return SimpleNamespace(run=found.run, get_providers=lambda: providers)

    made = SimpleNamespace(InferenceSession=session)
    monkeypatch.setitem(sys.modules, "onnxruntime", made)  # type: ignore[arg-type]
    model = doubling(tmp_path / "m.onnx")
    if providers == [PROVIDER]:
        _run("onnxruntime-tensorrt", model, tmp_path, monkeypatch)
        assert capsys.readouterr().out == "(2, 4) 2.0\n"
    else:
        with pytest.raises(AssertionError, match="CPUExecutionProvider"):
            _run("onnxruntime-tensorrt", model, tmp_path, monkeypatch)


def _run(name: str, plan: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program of the page, as a script in a folder that has `model.plan`."""
    script = folder / "program.py"
    script.write_text(PROGRAMS[name])
    plan.rename(folder / "model.plan")
    monkeypatch.chdir(folder)
    runpy.run_path(str(script))
