"""`plan`, `why` and `bench` before a build, after it, and after a change of the recipe."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sample_rows import make_row

from enginefarm import cli
from enginefarm.errors import GpuError, SourceError, StoreMissing, ToolchainError, UsageError
from enginefarm.store.engine_store import EngineStore
from enginefarm.tables.tables import BenchmarkTables
from tests import tiny_recipe

Out = pytest.CaptureFixture[str]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return written(tmp_path / "recipe")


def written(folder: Path, **changes: Any) -> Path:
    return tiny_recipe.write(folder, gpus=["t4"], precisions=["fp16"], **changes)


def said(out: Out, *arguments: str | Path) -> str:
    assert cli.run([str(one) for one in arguments]) == 0
    return out.readouterr().out


def build(recipe: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own, as a person does it."""
    return subprocess.run(
        [sys.executable, "-c", "from enginefarm.cli import main; main()", "build", str(recipe)],
        capture_output=True,
        text=True,
        check=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")},
    )


def test_a_recipe_from_plan_to_why(
    store_environment: EngineStore, recipe: Path, tmp_path: Path, capsys: Out
) -> None:
    (row,) = json.loads(said(capsys, "plan", recipe, "--json"))["builds"]
    assert not row["cached"]
    assert "to build" in said(capsys, "plan", recipe)
    assert "t4/fp16 would be built" in said(capsys, "why", recipe, "--gpu", "t4")
    assert cli.run(["bench", "run", str(recipe)]) == StoreMissing.exit_code
    assert "build it first" in capsys.readouterr().err

    done = build(recipe)
    lines = [line.split() for line in done.stdout.splitlines()]
    (shown,) = [line for line in lines if line[:2] == ["t4", "fp16"]]
    assert shown[-2:] == ["pending", "built"]
    assert "enginefarm pull tiny --gpu t4 --precision fp16" in done.stdout
    steps = [line.split()[0] for line in done.stderr.splitlines() if line.startswith("  ")]
    assert {"slim", "reference", "verify", "build", "upload"} <= set(steps), "one line a step"

    (row,) = json.loads(said(capsys, "plan", recipe, "--json"))["builds"]
    assert row["cached"]
    table = said(capsys, "plan", recipe)
    assert "cached" in table
    assert "to build" not in table
    assert "is already built, as spec " in said(capsys, "why", recipe, "--gpu", "t4")

    layers = said(capsys, "show", "tiny/t4/fp16", "--layers")
    assert "of the network before the build: its fusions are not known" in layers
    assert any(line.split()[:3] == ["conv", "CONVOLUTION", "conv"] for line in layers.splitlines())
    assert "groups differ" in said(capsys, "diff", "tiny/t4/fp16", "tiny")

    renamed = build(written(tmp_path / "renamed", name="renamed")).stdout
    assert "Engines of renamed" in renamed, "it shares the engine of the other recipe"
    assert "enginefarm pull renamed --gpu t4" in renamed
    assert [one["recipe"] for one in json.loads(said(capsys, "list", "--json"))] == [
        "renamed",
        "tiny",
    ]
    said(capsys, "report", "-o", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "enginefarm pull renamed --gpu t4" in page

    other = written(tmp_path / "other", builder={"optimization_level": 5})
    answer = json.loads(said(capsys, "why", other, "--gpu", "t4", "--json"))
    assert not answer["cached"]
    assert answer["nearest"]
    assert [
        (change["field"], change["before"], change["after"]) for change in answer["changes"]
    ] == [("builder.optimization_level", "3", "5")]
    text = said(capsys, "why", other, "--gpu", "t4")
    assert "would be built again; the nearest spec is" in text
    assert "builder.optimization_level" in text

    unbuilt = written(tmp_path / "unbuilt", name="unbuilt", salt="another")
    assert "would be built" in said(capsys, "why", unbuilt, "--gpu", "t4")

    rows = json.loads(said(capsys, "bench", "run", recipe, "--seconds", "0.05", "--json"))
    assert {(one["runtime"], one["precision"], one["batch"]) for one in rows} == {
        ("onnxruntime-cpu", precision, batch) for precision in ("fp32", "fp16") for batch in (1, 4)
    }
    assert all(one["cosine_min"] > 0.999 for one in rows), "compared with the first"
    assert "CPUs" in said(capsys, "bench", "run", recipe.parent, "--seconds", "0.05"), "its folder"
    markdown = said(capsys, "bench", "table", "--markdown", "--columns", "recipe,runtime,batch")
    assert markdown.splitlines()[0] == "| recipe | runtime | batch |"
    assert "| tiny | onnxruntime-cpu | 4 |" in markdown
    assert "benchmark rows" in said(capsys, "bench", "table", "--recipe", "tiny")


def test_history_judges_each_night_by_those_before(
    store_environment: EngineStore, capsys: Out
) -> None:
    today = dt.datetime.now(dt.UTC).date()
    nights = [today - dt.timedelta(days=back) for back in range(9, 0, -1)]
    latencies = [2.0, 2.01, 1.99, 2.0, 2.02, 1.98, 2.0, 2.01, 3.0]
    tables = BenchmarkTables(store_environment.objects)
    for night, latency in zip(nights, latencies, strict=True):
        for gpu in ("t4", "l4"):
            row = make_row(night, latency_ms_median=latency, gpu=gpu, writer=f"worker-{gpu}")
            tables.append([row])
    found = json.loads(said(capsys, "bench", "history", "minilm", "--gpu", "t4", "--json"))
    assert [one["latency_ms"] for one in found] == latencies
    assert found[0]["verdict"] != "slower"
    assert found[-1]["verdict"] == "slower"
    shown = said(capsys, "bench", "history", "minilm")
    assert "minilm over the last 30 nights" in shown
    assert "slower" in shown
    assert "No history of minilm" in said(capsys, "bench", "history", "minilm", "--gpu", "a100")
    assert said(capsys, "bench", "compact") == "18 files of 9 nights merged\n"
    assert said(capsys, "bench", "history", "minilm") == shown, "compacted, and the same"


def test_what_a_gpu_lacks_is_skipped_in_sight(
    store_environment: EngineStore, tmp_path: Path, capsys: Out
) -> None:
    recipe = tiny_recipe.write(
        tmp_path / "r", gpus=["t4"], precisions=["fp16", "bf16"], allow_skip=True
    )
    table = said(capsys, "plan", recipe)
    (row,) = [line for line in table.splitlines() if "bf16" in line]
    assert row.split()[-1] == "skipped"
    asked = ["why", str(recipe), "--gpu", "t4", "--precision", "bf16"]
    assert cli.run(asked) == UsageError.exit_code
    assert "t4/bf16: skipped" in capsys.readouterr().err


def test_what_a_gpu_lacks_does_not_hide_the_other_rows(
    store_environment: EngineStore, tmp_path: Path, capsys: Out
) -> None:
    recipe = tiny_recipe.write(tmp_path / "r", gpus=["t4", "l4"], precisions=["fp16", "bf16"])
    found = json.loads(said(capsys, "plan", recipe, "--json"))
    assert [one["target"]["gpu"] for one in found["builds"]] == ["t4", "l4", "l4"]
    (refused,) = found["skipped"]
    assert refused["exit_code"] == GpuError.exit_code
    assert "bf16 cannot be built for t4" in refused["reason"]
    assert "cannot be built" in said(capsys, "plan", recipe)


def test_plan_finds_what_the_export_would_find(
    store_environment: EngineStore, tmp_path: Path, capsys: Out
) -> None:
    wrong = written(tmp_path / "input")
    wrong.write_text(wrong.read_text().replace("name: images", "name: imagse"))
    assert cli.run(["plan", str(wrong)]) == SourceError.exit_code
    err = capsys.readouterr().err
    assert "inputs: the model has no input called imagse" in err
    assert "did you mean images?" in err
    for content in (b"a page of text, and no model at all\n" * 9, b"\x08\x08" * 40):
        none = written(tmp_path / "none")
        (none.parent / "model.onnx").write_bytes(content)
        assert cli.run(["plan", str(none)]) == SourceError.exit_code
        assert "source.path: model.onnx is not an ONNX model" in capsys.readouterr().err


def test_the_schema_is_the_recipes(capsys: Out) -> None:
    schema = json.loads(said(capsys, "schema"))
    assert {"name", "source", "inputs", "gpus", "precisions"} <= set(schema["properties"])


def test_the_store_says_where_it_is(
    store_environment: EngineStore, capsys: Out, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = json.loads(said(capsys, "store", "--json"))
    assert found == {
        "url": store_environment.url,
        "embedded": False,
        "running": False,
        "endpoint": os.environ["AWS_ENDPOINT_URL"],
        "pid": None,
    }
    monkeypatch.delenv("ENGINEFARM_STORE")
    monkeypatch.setenv("ENGINEFARM_HOME", str(tmp_path / "home"))
    started = json.loads(said(capsys, "store", "start", "--json"))
    try:
        assert started["embedded"]
        assert started["running"]
        os.kill(started["pid"], 0)
    finally:
        stopped = said(capsys, "store", "stop")
    assert "running   False" in stopped
    with contextlib.suppress(ChildProcessError):
        os.waitpid(started["pid"], 0)  # this process started it, so it has to reap it
    with pytest.raises(ProcessLookupError):
        os.kill(started["pid"], 0)


def test_new_weights_cannot_be_set_in_a_cross_built_plan(
    store_environment: EngineStore, tmp_path: Path, capsys: Out
) -> None:
    recipe = written(tmp_path / "r", builder={"refit": True})
    assert cli.run(["plan", str(recipe)]) == ToolchainError.exit_code
    refused = capsys.readouterr().err
    assert "builder.refit: it cannot be used with toolchain tensorrt-rtx" in refused
    assert "only on a machine with a GPU" in refused
