"""Two models with the same graph and other weights keep one skeleton through every stage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from enginefarm.graph.model import skeleton
from enginefarm.planning import graphs, stages
from enginefarm.recipes import file as recipe_file
from enginefarm.store.cache import BlobCache
from enginefarm.store.engine_store import EngineStore
from enginefarm.store.site import Site, materialize
from tests import tiny_recipe


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_after_export_slimming_and_precision(
    store: EngineStore, tmp_path: Path, precision: str
) -> None:
    site = Site(store, BlobCache(tmp_path / "cache"))
    path = tiny_recipe.write(tmp_path / "recipe", precisions=[precision])
    found: list[Path] = []
    for training in ("first", "second"):
        recipe = recipe_file.load(path)
        exported = stages.export(site, recipe)
        slimmed = stages.slim(site, recipe, exported)
        reference = stages.reference(site, recipe, exported.outputs)
        prepared = graphs.prepare(site, recipe, slimmed.model, reference, precision)
        assert prepared.verification.passed
        found.append(materialize(site, prepared.graph, tmp_path / training))
        train(tmp_path / "recipe" / "model.onnx")
    first, second = found
    assert first.read_bytes() != second.read_bytes()
    assert skeleton.digest(str(first)) == skeleton.digest(str(second))
    order = skeleton.WeightsOrder(before=first, after=second, dest=tmp_path / "weights")
    written = skeleton.WeightNames.model_validate_json(
        skeleton.write_weights(order.model_dump_json())
    )
    assert len(written.names) == 3, "the kernel, the matrix and its bias"


def train(path: Path) -> None:
    model = onnx.load(path)
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        noise = np.random.default_rng(1).normal(0, 0.05, values.shape)
        weight.CopyFrom(numpy_helper.from_array((values + noise).astype("f4"), weight.name))
    onnx.save(model, path)
