"""`enginefarm bench slo` on a real store, with sessions of ONNX Runtime in processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from enginefarm import cli
from enginefarm.report import nightly
from enginefarm.store.engine_store import EngineStore
from enginefarm.tables.filter import RowFilter
from enginefarm.tables.rows import comparable
from enginefarm.tables.tables import BenchmarkTables
from tests import tiny_recipe

QUICK = ["--seconds", "0.05", "--requests", "100", "--json"]


def test_the_highest_rate_of_one_and_of_two_streams(
    store_environment: EngineStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tiny_recipe.write(tmp_path / "tiny", gpus=["a100"], precisions=["fp16"])
    subprocess.run(
        [sys.executable, "-c", "from enginefarm.cli import main; main()", "build", str(path)],
        check=True,
        capture_output=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")},
    )
    slo = ["bench", "slo", str(path), *QUICK]
    assert cli.run([*slo, "--p99-ms", "60000", "--streams", "2"]) == 0
    one, two = json.loads(capsys.readouterr().out)
    for row, streams in ((one, 1), (two, 2)):
        assert (row["streams"], row["slo_p99_ms"], row["precision"]) == (streams, 60000, "fp32")
        assert 0 < row["slo_rate_per_s"] < row["capacity_per_s"]
        assert 0 < row["slo_reached_p99_ms"] <= 60000
        assert row["latency_ms_median"] is None, "it is no latency of lone passes"
        assert "arrivals=poisson" in row["harness_flags"]
    assert cli.run([*slo, "--p99-ms", "0.001"]) == 0
    (none,) = json.loads(capsys.readouterr().out)
    assert none["slo_rate_per_s"] is None
    assert "at every rate that was tried, down to" in none["reason"]
    stored = BenchmarkTables(store_environment.objects).rows(RowFilter.of(recipe="tiny"))
    under_load = [row for row in stored if row.streams]
    assert [row.streams for row in under_load] == [1, 2, 1]
    assert comparable(under_load[0], under_load[1]) == "not measured"
    assert "tiny" in nightly.page(store_environment)
    assert cli.run([*slo, "--p99-ms", "5", "--precision", "int8"]) == 43
    assert "has no graph in int8" in capsys.readouterr().err
