"""`enginefarm bench slo` on a real store, with sessions of ONNX Runtime in processes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from sample_manifest import make_manifest

from enginefarm import cli
from enginefarm.documents.spec import MinOptMax, OnnxRef, ShapeProfile
from enginefarm.errors import HostError
from enginefarm.report import nightly
from enginefarm.store.engine_store import EngineStore
from enginefarm.tables.filter import RowFilter
from enginefarm.tables.rows import comparable
from enginefarm.tables.tables import BenchmarkTables
from tests import tiny_recipe

QUICK = ["--seconds", "0.05", "--requests", "100", "--json"]


@pytest.fixture
def recipe(store_environment: EngineStore, tmp_path: Path) -> Path:
    """Its FP32 graph and its reference are in the store, as a build leaves them."""
    path = tiny_recipe.write(tmp_path / "tiny", gpus=["a100"], precisions=["fp32"])
    images = np.load(path.with_name("data.npz"))["images"][:4]
    scores = np.zeros((4, tiny_recipe.CLASSES), np.float32)
    np.savez(tmp_path / "r.npz", **{"0000/input/images": images, "0000/output/scores": scores})
    made = make_manifest("tiny", label="a100", precision="fp32")
    shape = (3, tiny_recipe.SIZE, tiny_recipe.SIZE)
    bounds = MinOptMax(min=(1, *shape), opt=(4, *shape), max=(8, *shape))
    profile = ShapeProfile(name="default", shapes={"images": bounds})
    spec = made.spec.model_copy(update={"profiles": (profile,)})
    store_environment.put_bytes(b"engine")
    made = made.model_copy(
        update={
            "spec": spec,
            "spec_digest": spec.digest,
            "graph": OnnxRef(
                model=store_environment.put_blob(path.with_name("model.onnx")), opset=20
            ),
            "reference": store_environment.put_blob(tmp_path / "r.npz"),
        }
    )
    assert store_environment.publish(made)
    return path


def test_the_highest_rate_of_one_and_of_two_streams(
    store_environment: EngineStore, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slo = ["bench", "slo", str(recipe), *QUICK]
    assert cli.run([*slo, "--p99-ms", "60000", "--streams", "2"]) == 0
    one, two = json.loads(capsys.readouterr().out)
    for row, streams in ((one, 1), (two, 2)):
        assert (row["streams"], row["slo_p99_ms"], row["precision"]) == (streams, 60000, "fp32")
        assert 0 < row["slo_rate_per_s"] < row["capacity_per_s"]
        assert 0 < row["slo_reached_p99_ms"] <= 60000
        assert row["latency_ms_median"] is None, "the latency is not that of lone passes"
        assert "arrivals=poisson" in row["harness_flags"]
    assert cli.run([*slo, "--p99-ms", "0.001"]) == 0
    (none,) = json.loads(capsys.readouterr().out)
    assert none["slo_rate_per_s"] is None
    assert "at every rate that was tried, down to" in none["reason"]
    assert re.search(r"woke a waiting stream \S+ ms late \(p99\)", none["reason"])
    stored = BenchmarkTables(store_environment.objects).rows(RowFilter.of(recipe="tiny"))
    under_load = [row for row in stored if row.streams]
    assert [row.streams for row in under_load] == [1, 2, 1]
    assert comparable(under_load[0], under_load[1]) == "not measured"
    assert "tiny" in nightly.page(store_environment)
    assert cli.run([*slo, "--p99-ms", "5", "--precision", "int8"]) == 43
    assert "has no graph in int8" in capsys.readouterr().err


def test_an_engine_needs_a_gpu_and_a_graph_of_cuda_an_engine(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slo = ["bench", "slo", str(recipe), *QUICK, "--p99-ms", "5"]
    assert cli.run([*slo, "--cuda-graph"]) == 2
    assert "add --engine" in capsys.readouterr().err
    monkeypatch.setattr("enginefarm.bench.on_gpu.first_gpu", lambda: None)
    assert cli.run([*slo, "--engine"]) == HostError.exit_code
    said = capsys.readouterr().err
    assert "no GPU that gpus.toml lists" in said
    assert "leave out --engine" in said
