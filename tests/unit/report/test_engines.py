"""The page of an engine: what it says, and which recipes the report still shows."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from sample_manifest import CALIBRATED, NOON, make_manifest
from sample_rows import make_row

from enginefarm.documents.layers import Layer, Layers
from enginefarm.documents.manifest import Manifest
from enginefarm.report import assemble, engines, nightly, render
from enginefarm.report.engines import EnginePage
from enginefarm.report.nightly import in_use
from enginefarm.store import channels
from enginefarm.tables.from_manifest import rows_from_manifest

LAYERS = Layers(
    layers=(
        Layer(name="small", precision="FP16", output_bytes=10),
        Layer(name="large", kind="Convolution", precision="FP16", output_bytes=9_000),
        Layer(name="wide", precision="FP32", weight_bytes=500),
    )
)


def page_of(manifest: Manifest, layers: Layers | str = LAYERS) -> EnginePage:
    data = assemble(rows_from_manifest(manifest), title="", store="")
    digest = manifest.spec_digest
    (found,) = engines.pages(data.models, {digest: manifest}, {digest: layers})
    return found


def test_it_says_where_the_engine_comes_from_and_how_to_get_it() -> None:
    manifest = make_manifest(engine=b"bytes")
    precision = manifest.spec.precision.model_copy(update={"calibration": CALIBRATED})
    spec = manifest.spec.model_copy(update={"precision": precision})
    page = page_of(manifest.model_copy(update={"spec": spec, "notes": ("opset was raised",)}))
    told = {fact.label: fact.text for fact in page.lineage}
    assert told["engine"] == manifest.engine.digest[:12]
    assert told["toolchain"] == "tensorrt 10.16.1.11"
    assert told["model"].endswith("torch 2.13.0")
    assert told["calibrated on"].startswith("16 × 8 samples, entropy, data cccccccccccc")
    assert told["profile default"] == "x (1, 3) (8, 3) (32, 3)"
    assert told["engine verified on"] == "no GPU yet: pending"
    assert told["note"] == "opset was raised"
    assert page.commands == (
        "enginefarm pull model --gpu t4 --precision fp16",
        f"enginefarm show {manifest.spec_digest[:12]} --layers",
    )


def test_layers_are_counted_and_the_costliest_come_first() -> None:
    page = page_of(make_manifest())
    assert page.layer_words == "3 layers by precision: 2 FP16, 1 FP32"
    assert [cells[0] for cells in page.layers] == ["large", "wide", "small"]
    timed = LAYERS.timed({"small": 0.5, "large": 0.25})
    page = page_of(make_manifest(), timed)
    assert page.layers[0][0] == "small"
    assert page.layer_words.endswith("0.750 ms together when profiled")


def test_layers_that_are_not_known_say_why() -> None:
    page = page_of(make_manifest(), "no layers were stored when it was built")
    assert page.layer_words == "no layers were stored when it was built"
    assert page.layers == ()


def test_an_engine_that_only_rows_speak_of_has_a_page_too() -> None:
    rows = [make_row(size_bytes=9_000_000, cosine_min=0.999), make_row(1, profile="other")]
    (page,) = engines.pages(assemble(rows, title="", store="").models, {}, {})
    assert [fact.label for fact in page.lineage] == ["engine", "spec", "toolchain"]
    told = {fact.label: fact for fact in page.figures}
    assert told["median latency"].text == "2.00 ms"
    assert told["size"].text == "9.00 MB"
    assert (told["throughput"].lower, told["median latency"].lower) == (False, True)
    assert len(page.timings) == 2


def test_text_of_a_manifest_stays_text() -> None:
    evil = "<script>alert(1)</script>"
    manifest = make_manifest().model_copy(update={"notes": (evil,)})
    data = assemble(rows_from_manifest(manifest), title="", store="")
    by_spec = {manifest.spec_digest: manifest}
    layers = {manifest.spec_digest: Layers(layers=(Layer(name=evil),))}
    data = type(data)(**{**vars(data), "manifests": by_spec, "engine_layers": layers})
    page = render(data)
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 2
    assert evil not in page


@pytest.mark.parametrize(
    ("asked", "since", "channel", "kept"),
    [
        ((), NOON.date() + dt.timedelta(1), (), False),
        (("model",), NOON.date() + dt.timedelta(1), (), True),
        ((), NOON.date(), (), True),
        ((), NOON.date() + dt.timedelta(1), ("production",), True),
    ],
)
def test_a_recipe_that_nobody_works_with_leaves_the_report(
    asked: tuple[str, ...],
    since: dt.date,
    channel: tuple[str, ...],
    kept: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channels, "names", lambda store, recipe: channel)
    assert nightly.channels is channels
    store: Any = None
    manifests = [make_manifest(), make_manifest(label="l4")]
    found, abandoned = in_use(store, manifests, asked, since)
    assert (len(found), abandoned) == ((2, []) if kept else (0, ["model"]))
