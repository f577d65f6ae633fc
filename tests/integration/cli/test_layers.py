"""`diff` and `show --layers` on engines in a real store."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sample_manifest import make_manifest
from sample_rows import make_row

from enginefarm import cli
from enginefarm.documents.manifest import Manifest
from enginefarm.errors import CorruptBlob, StoreMissing, UsageError
from enginefarm.report import nightly
from enginefarm.store.engine_store import EngineStore
from enginefarm.tables.layers import LayerTimes, compared, remember
from enginefarm.tables.tables import BenchmarkTables

Out = pytest.CaptureFixture[str]


def layer(name: str, tactic: str = "t") -> dict[str, Any]:
    tensors = [{"Name": "x", "Dimensions": [2, 2], "Format/Datatype": "Row major linear FP16"}]
    return {"Name": name, "LayerType": "Conv", "Outputs": tensors, "TacticName": tactic}


@pytest.fixture
def engine(store_environment: EngineStore) -> Callable[..., Manifest]:
    """Publishes an engine with these layers, and with these milliseconds a layer."""

    def made(*layers: Any, ms: dict[str, float] | None = None, **more: Any) -> Manifest:
        store = store_environment
        body = json.dumps({"Layers": layers}).encode()
        manifest = make_manifest(**more)
        store.put_bytes(b"engine")
        store.put_bytes(b"graph")
        build = manifest.build.model_copy(update={"layers": store.put_bytes(body)})
        manifest = manifest.model_copy(update={"build": build})
        assert store.publish(manifest)
        if ms:
            remember(
                store,
                manifest,
                LayerTimes(
                    engine=manifest.engine.digest[:16],
                    passes=1,
                    ms=ms,
                    measured_at=dt.datetime.now(dt.UTC),
                ),
            )
        return manifest

    return made


def said(out: Out, *arguments: str) -> str:
    assert cli.run([*arguments]) == 0
    return out.readouterr().out


def test_two_engines_by_digest_and_by_name(engine: Any, capsys: Out) -> None:
    first = engine(layer("conv + relu"), ms={"conv + relu": 1.0})
    second = engine(
        layer("conv", "u"),
        layer("relu"),
        ms={"conv": 1.5, "relu": 0.5},
        precision="int8",
        minutes=5,
    )
    table = said(capsys, "diff", first.spec_digest[:12], "model/t4/int8")
    assert "1 → 2 layers, 1 of 1 groups differ, sum of layers 1 ms → 2 ms" in table
    assert "fused" in table
    assert f"model/t4/int8 {second.spec_digest[:12]}" in table
    assert "model/t4/int8" in said(capsys, "diff", "model/t4/fp16", "model"), "the newest, by name"
    assert "1.0000 → 2.0000" in table
    found = json.loads(said(capsys, "diff", "model/t4/fp16", "model/t4/int8", "--json"))
    assert found["rows"][0]["nodes"] == ["conv", "relu"]
    assert "t4/fp16" in said(capsys, "show", "model/t4/fp16", "--layers")


def test_a_file_needs_no_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    monkeypatch.setenv("ENGINEFARM_STORE", "s3://nowhere/at-all")
    (tmp_path / "a.json").write_text(json.dumps([layer("conv")]))
    (tmp_path / "b.json").write_text("not JSON")
    name = str(tmp_path / "a.json")
    assert "0 of 1 groups differ" in said(capsys, "diff", name, name)
    assert cli.run(["diff", name, str(tmp_path / "b.json")]) == CorruptBlob.exit_code
    assert "b.json: this is not an engine inspector's JSON" in capsys.readouterr().err
    assert cli.run(["diff", name, "c.json"]) == UsageError.exit_code
    assert "there is no file c.json" in capsys.readouterr().err


def test_an_engine_without_layers_says_so(publish: Any, capsys: Out) -> None:
    publish()
    assert cli.run(["show", "model", "--layers"]) == StoreMissing.exit_code
    assert "no layers were stored when it was built" in capsys.readouterr().err


def test_a_profile_of_other_bytes_is_not_shown(store: EngineStore, engine: Any) -> None:
    manifest = engine(layer("conv"))
    other = manifest.model_copy(update={"engine": store.put_bytes(b"others")})
    times = LayerTimes(
        engine=other.engine.digest[:16],
        passes=1,
        ms={"conv": 1.0},
        measured_at=dt.datetime.now(dt.UTC),
    )
    remember(store, manifest, times)
    found = compared(store, manifest.spec_digest, engine(layer("x"), salt="1").spec_digest)
    assert not isinstance(found, str)
    assert found.ms == (None, None)


def test_the_report_shows_the_layers_under_a_slower_verdict(
    store: EngineStore, engine: Any
) -> None:
    before, after = engine(layer("conv")), engine(layer("conv", "slow_kernel"), salt="1")
    today = dt.datetime.now(dt.UTC).date()
    nights = [today - dt.timedelta(days=back) for back in range(6, -1, -1)]
    rows = [
        make_row(
            night,
            recipe="model",
            spec_digest=(after if night == today else before).spec_digest,
            latency_ms_median=9.0 if night == today else 2.0,
        )
        for night in nights
    ]
    BenchmarkTables(store.objects).append(rows)
    page = nightly.page(store)
    assert "slow_kernel" in page
    assert f"enginefarm diff {before.spec_digest[:12]} {after.spec_digest[:12]}" in page
