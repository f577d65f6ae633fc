"""`pull --for`, and the speed guard of `promote`, on rows in a real store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sample_rows import make_row

from enginefarm import cli
from enginefarm.documents.manifest import Manifest
from enginefarm.documents.thresholds import Regression
from enginefarm.errors import GateError, UsageError
from enginefarm.release.promote import promote
from enginefarm.store.engine_store import EngineStore
from enginefarm.tables import speeds
from enginefarm.tables.tables import BenchmarkTables

Out = pytest.CaptureFixture[str]
Publish = Callable[..., Manifest]


@pytest.fixture
def pair(publish: Publish) -> tuple[Manifest, Manifest]:
    """FP16, which the constant order takes first, and INT8."""
    return publish(b"fp16"), publish(b"int8", precision="int8")


def measure(store: EngineStore, manifest: Manifest, ms: float, night: int = 0, **more: Any) -> None:
    row = make_row(
        night,
        recipe=manifest.recipe,
        gpu=manifest.gpu,
        precision=manifest.precision,
        spec_digest=manifest.spec_digest,
        engine_digest=manifest.engine.digest,
        latency_ms_median=ms,
        throughput_samples_per_s=1000 / ms,
        **more,
    )
    BenchmarkTables(store.objects).append([row])


def pulled(out: Out, *options: str) -> dict[str, Any]:
    assert cli.run(["pull", "model", "--gpu", "t4", "--json", *options]) == 0
    return json.loads(out.readouterr().out)


def precision(found: dict[str, Any]) -> str:
    return found["manifest"]["spec"]["precision"]["name"]


def test_without_rows_the_constant_order_is_used_and_said(pair: Any, capsys: Out) -> None:
    found = pulled(capsys, "--for", "latency")
    assert precision(found) == "fp16"
    assert "no engine that fits was measured on t4, so the constant order" in found["ranked_by"]
    assert cli.run(["pull", "model", "--gpu", "t4", "--for", "latency"]) == 0
    assert "so the constant order is used: fit, then fp16" in capsys.readouterr().err


def test_the_fastest_of_those_that_were_measured_alike(
    pair: tuple[Manifest, Manifest], store: EngineStore, capsys: Out
) -> None:
    fp16, int8 = pair
    measure(store, fp16, 2.0)
    measure(store, int8, 1.0)
    measure(store, int8, 5.0, batch=8)
    measure(store, fp16, 4.0, batch=8)
    assert precision(pulled(capsys)) == "fp16", "nobody asked for speed"
    found = pulled(capsys, "--for", "latency")
    assert precision(found) == "int8"
    assert found["speed"]["latency_ms_median"] == 1.0
    assert "2 of 2 engines that fit" in found["ranked_by"]
    assert precision(pulled(capsys, "--for", "latency", "--batch", "8")) == "fp16"


def test_another_gpus_figures_and_unstable_ones_do_not_count(
    pair: tuple[Manifest, Manifest], store: EngineStore, capsys: Out
) -> None:
    measure(store, pair[1].model_copy(update={"recipe": "other"}), 0.1)
    measure(store, pair[1], 0.1, cov_verdict="unstable")
    assert "was measured on t4" in pulled(capsys, "--for", "latency")["ranked_by"]


def test_the_newest_figure_of_a_condition_replaces_the_older(
    pair: tuple[Manifest, Manifest], store: EngineStore
) -> None:
    measure(store, pair[0], 2.0)
    measure(store, pair[0], 3.0, night=1)
    (kept,) = speeds.read(store.objects, "model", "t4").engine(pair[0].spec_digest)
    assert kept.latency_ms_median == 3.0


def test_a_batch_without_a_goal_is_a_mistake(pair: Any, capsys: Out) -> None:
    assert cli.run(["pull", "model", "--batch", "8"]) == UsageError.exit_code
    assert "add --for latency" in capsys.readouterr().err


def test_offline_has_no_figures_and_says_so(pair: Any, capsys: Out, tmp_path: Path) -> None:
    pulled(capsys)
    assert "constant order" in pulled(capsys, "--for", "latency", "--offline")["ranked_by"]


def names(engines: Any) -> list[str]:
    return sorted(one.precision for one in engines)


def test_fewer_bits_that_are_no_faster_stay_out_of_the_channel(
    pair: tuple[Manifest, Manifest], store: EngineStore
) -> None:
    measure(store, pair[0], 2.0)
    measure(store, pair[1], 2.0 / 1.019)
    moved = promote(store, "model", "production", allow_pending=True)
    assert names(moved.engines) == ["fp16"]
    (said,) = [one for one in moved.gates if one.gate == "speed" and "t4/int8" in one.label]
    assert said.verdict == "waived"
    assert "left out of the channel: 1.019 × as fast as fp16" in said.detail


def test_a_channel_that_had_it_loses_it_only_to_the_guard(
    pair: tuple[Manifest, Manifest], store: EngineStore
) -> None:
    before = promote(store, "model", "production", allow_pending=True)
    assert names(before.engines) == ["fp16", "int8"], "without rows it enters, and the gate says so"
    assert any("never timed alike" in one.detail for one in before.gates if one.gate == "speed")
    measure(store, pair[0], 2.0)
    measure(store, pair[1], 2.0)
    after = promote(store, "model", "production", allow_pending=True)
    assert names(after.engines) == ["fp16"]
    (lost,) = [one for one in after.gates if one.gate == "nothing-lost"]
    assert "the speed guard left them out" in lost.detail


def test_the_recipes_threshold_counts(pair: tuple[Manifest, Manifest], store: EngineStore) -> None:
    rule = Regression(min_speedup=2).canonical_json()
    store.objects.put("benchmarks/rules/model.json", rule)
    measure(store, pair[0], 2.0)
    measure(store, pair[1], 1.1)
    moved = promote(store, "model", "production", allow_pending=True)
    assert names(moved.engines) == ["fp16"]


def test_a_gpu_is_never_left_without_an_engine(publish: Publish, store: EngineStore) -> None:
    only = publish(b"int8", precision="int8")
    measure(store, only, 99.0)
    assert names(promote(store, "model", "production", allow_pending=True).engines) == ["int8"]
    with pytest.raises(GateError, match="run it there"):
        promote(store, "model", "production")
