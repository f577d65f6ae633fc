"""`make bench`: what one benchmark does to the table when it fails, and how figures read."""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path

import pytest

from benchmarks import gather
from benchmarks.figures import Figure, number

FAST = Figure("fast", 0.5, "s", at_most=1)
SLOW = Figure("slow", 3, "s", at_most=1)


@pytest.mark.parametrize(
    ("figure", "cells"),
    [
        (FAST, ("0.5 s", "≤ 1", "0.50", "yes")),
        (SLOW, ("3 s", "≤ 1", "3.00", "**missed**")),
        (Figure("throughput", 0.28, "×", at_least=1), ("0.28 ×", "≥ 1", "0.28", "**missed**")),
        (Figure("no aim", 12345.6), ("12,346", "", "", "")),
    ],
)
def test_a_figure_says_whether_its_aim_is_met(figure: Figure, cells: tuple[str, ...]) -> None:
    assert figure.cells() == cells


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.99998, "0.99998"),
        (0.9999999, "1"),
        (3.5098, "3.51"),
        (0.0316, "0.0316"),
        (45.67, "45.7"),
        (1234.5, "1,234"),
    ],
)
def test_numbers_are_short(value: float, shown: str) -> None:
    assert number(value) == shown


@pytest.fixture
def benchmarks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of made-up benchmarks, which `gather` then knows."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    root = Path(__file__).parents[3]
    for name in ("__init__", "good", "broken", "endless"):
        (folder / f"{name}.py").write_text("")
    (folder / "__init__.py").write_text(f"__path__.append({str(root / 'benchmarks')!r})\n")
    (folder / "good.py").write_text(
        "from benchmarks.figures import Figure\n"
        "def main(arguments):\n"
        "    print('its own table')\n"
        "    return [Figure(' '.join(arguments), 0.5, 's', at_most=1)]\n"
    )
    (folder / "broken.py").write_text("def main(arguments):\n    raise OSError('no server')\n")
    (folder / "endless.py").write_text("import time\ndef main(arguments):\n    time.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    commands = {name: (name, "--rounds", "1") for name in ("broken", "endless", "good")}
    monkeypatch.setattr(gather, "BENCHMARKS", commands)
    return tmp_path


def test_what_fails_is_named_and_the_others_figures_stand(
    benchmarks: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    limits = {"broken": 60, "endless": 1, "good": 60}
    found = [gather.run(name, limit_s) for name, limit_s in limits.items()]
    assert [bool(one.failure) for one in found] == [True, True, False]
    assert "no server" in capfd.readouterr().out, "what it printed is shown"
    assert "still running after 1 s" in found[1].failure
    kept = benchmarks / "test-output" / "benchmarks" / "good.txt"
    assert kept.read_text() == "its own table\n"

    rows = list(gather.page(found, dt.datetime(2026, 11, 25, tzinfo=dt.UTC)))
    assert "| good | --rounds 1 | 0.5 s | ≤ 1 | 0.50 | yes |" in rows
    assert "1 of 1 aims met; failed: broken, endless." in rows
    assert any(row.startswith("| broken | **failed**: ended with status 1;") for row in rows)
    assert any("`python -m benchmarks.good --rounds 1`" in row for row in rows)


def test_an_unknown_name_is_refused(
    benchmarks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gather", "good", "bad"])
    with pytest.raises(SystemExit) as ended:
        gather.main()
    assert ended.value.code == 2
    assert "no benchmark: bad" in capsys.readouterr().err
