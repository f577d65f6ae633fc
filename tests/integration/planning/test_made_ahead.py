"""What the export's process makes for later stages, which then start no process of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from enginefarm.documents.stage import StageOutput
from enginefarm.errors import SlimError
from enginefarm.graph.order import Order
from enginefarm.graph.precisions import ranges
from enginefarm.planning import graphs, stages
from enginefarm.recipes import file as recipe_file
from enginefarm.store.cache import BlobCache
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.site import Site, materialize
from tests import tiny_recipe


def test_it_is_what_their_own_processes_make(
    store: EngineStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(store, BlobCache(tmp_path / "cache"))
    recipe = recipe_file.load(tiny_recipe.write(tmp_path / "recipe", precisions=["fp16"]))
    exported = stages.export(site, recipe)
    asked: list[tuple[str, Order]] = []
    in_child = stages.in_child

    def noted(function: str, order: Order, **options: Any) -> StageOutput:
        asked.append((function, order))
        return in_child(function, order, **options)

    monkeypatch.setattr(stages, "in_child", noted)
    reference = stages.reference(site, recipe, exported.outputs)
    slimmed = stages.slim(site, recipe, exported)
    prepared = graphs.prepare(site, recipe, slimmed.model, reference, "fp16")
    assert prepared.verification.passed
    ((function, order),) = asked
    assert function == "convert"

    graph = materialize(site, slimmed.model.onnx, tmp_path / "slimmed")
    seen = ranges.of_file(graph, site.cache.ensure(store, reference.npz))
    assert seen
    assert order.largest == seen

    raw = materialize(site, exported.onnx, tmp_path / "exported").absolute()
    with site.scratch() as scratch:
        alone = stages.order_of(recipe, scratch, onnx=raw)
        made = in_child("slim", alone, what="slimming", error=SlimError)
        assert made.files["model"].read_bytes() == graph.read_bytes()
        assert made.values == {"notes": [], "operators": slimmed.model.operators}


def test_no_range_is_looked_at_where_no_precision_asks(store: EngineStore, tmp_path: Path) -> None:
    site = Site(store, BlobCache(tmp_path / "cache"))
    recipe = recipe_file.load(tiny_recipe.write(tmp_path / "recipe", precisions=["fp32"]))
    exported = stages.export(site, recipe)
    slimmed = stages.slim(site, recipe, exported)
    reference = stages.reference(site, recipe, exported.outputs)
    assert slimmed.cached
    key = stages.ranges_key(slimmed.model.onnx, reference.npz)
    assert store.stage("ranges", key) is None
